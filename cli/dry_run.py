"""How is a forecast told? For `--dry-run` of submit and upscale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from worker.filelist import Named
    from worker.forecast import Forecast
    from worker.jobs import Job
    from worker.ledger import Ledger
    from worker.settings import Settings


def show_forecast(
    job: Job, settings: Settings, ledger: Ledger | None, *, as_json: bool, named: Named | None = None
) -> int:
    """Print what the job would do; nothing is written or queued."""
    from cli.output import live, print_json
    from worker.forecast import forecast

    with live(not as_json) as draw:
        found = forecast(job, settings, ledger, on_look=lambda seen: draw(f"{seen:,} images looked at"), named=named)
    if as_json:
        print_json(facts(job, found))
    else:
        click.echo(text(job, found))
    return 0


def facts(job: Job, found: Forecast) -> dict[str, Any]:
    """A forecast for scripts."""
    source, destination = job.places
    return {
        "dry_run": True,
        "source": source,
        "destination": destination,
        "scale": None if job.options.sized else job.options.scale,
        "target": job.options.target,
        "model": {"version": job.model.version, "sha256": job.model.sha256},
        "images": {
            "total": found.total,
            "todo": found.todo,
            "skipped": found.skipped,
            "refused": found.refused.total(),
            "ignored": found.ignored,
        },
        "refused": dict(found.refused),
        "sample": {"images": found.sampled, "large_enough": found.sample_large, "refused": dict(found.sample_refused)},
        "examples": [{"key": key, "code": code, "message": message} for key, code, message in found.examples],
        "input_bytes": found.input_bytes,
        "input_megapixels": round(found.input_pixels / 1e6, 3),
        "output_megapixels": round(found.output_pixels / 1e6, 3),
        "output_bytes": round(found.output_bytes),
        "megapixels_per_second": found.speed,
        "seconds": None if found.seconds is None else round(found.seconds, 1),
        "speed_from": found.speed_from,
    }


def text(job: Job, found: Forecast) -> str:
    """A forecast for reading."""
    from cli.output import duration, printable, size_text

    left_out = f"; {found.ignored:,} other files left out" if found.ignored else ""
    lines = [
        f"{found.total:,} images: {found.todo:,} to do, {found.skipped:,} skipped, "
        f"{found.refused.total():,} refused{left_out}"
    ]
    if found.skipped:
        alike = "" if job.options.overwrite == "never" else ", made from the same source, settings and model"
        lines.append(f"skipped: their outputs are there already{alike}; --overwrite always would replace them")
    if found.refused:
        lines.append("refused: " + ", ".join(f"{code} {n:,}" for code, n in sorted(found.refused.items())))
    if found.sample_refused:
        codes = ", ".join(f"{code} {n:,}" for code, n in sorted(found.sample_refused.items()))
        lines.append(f"of {found.sampled} images that were looked into, these would fail too: {codes}")
    if found.sample_large:
        lines.append(
            f"of {found.sampled} images that were looked into, {found.sample_large} would be skipped: large enough"
        )
    lines += [f"  {printable(key)}: {code}: {printable(message)}" for key, code, message in found.examples]
    if found.todo:
        lines += [
            f"input: {size_text(found.input_bytes)}, about {found.input_pixels / 1e6:,.1f} MP",
            f"output: about {found.output_pixels / 1e6:,.1f} MP, {size_text(found.output_bytes)}",
            f"time: about {duration(found.seconds)} at {found.speed:.2f} MP/s, the speed of {found.speed_from}"
            if found.speed
            else f"time: not known: {printable(found.speed_from)}",
        ]
    return "\n".join([*lines, "nothing was written or queued"])
