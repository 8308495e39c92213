"""Which files make a report? report.html, and beside it report.json, results.csv and failed.csv.

They come from the record at the destination, so that a job which Redis has forgotten has a report, too.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vdsr import __version__
from vdsr.evaluate import PROTOCOL
from worker.errors import StorageError
from worker.jobs import Job, Options, Outcome, State
from worker.parts import Parts
from worker.report.figures import Distribution, Figures, gather
from worker.report.page import render
from worker.report.samples import Sample, sample
from worker.settings import Settings
from worker.storage import Storage
from worker.storage.local import LocalStorage
from worker.uris import open_storage

COLUMNS = ("key", "output", "outcome", "code", "message", "psnr_bicubic", "psnr_vdsr", "gain", "width", "height")
MORE = ("lr_consistency", "size_bytes", "model", "worker", "finished", "seconds", "notes")


def write_report(parts: Parts, state: State | None, page: Path, settings: Settings, *, pictures: bool = True) -> Path:
    """Write the report of a job; the page's path.

    Args:
        state: in which the job ended; None while it runs, or if it was lost.
        page: of the HTML file; its folder is made, and takes the other files.
        pictures: whether to show the best and worst images.

    Raises:
        OSError: the files cannot be written.
        StorageError: the record cannot be read.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        tables = [
            csv.writer(stack.enter_context((page.parent / name).open("w", newline="", encoding="utf-8")))
            for name in ("results.csv", "failed.csv")
        ]
        for table in tables:
            table.writerow((*COLUMNS, *MORE))

        def keep(row: Outcome) -> None:
            cells = _cells(row)
            tables[0].writerow(cells)
            if row.outcome == "failed":
                tables[1].writerow(cells)

        figures = gather((row for _, rows in parts.all_results() for row in rows), keep)
    listed = sum(1 for _ in parts.chunks("manifest"))
    samples = _samples(figures, parts, page, settings) if pictures else {}
    facts = summary(parts.job, state, figures)
    (page.parent / "report.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", "utf-8")
    page.write_text(render(facts, figures, samples, chunks=listed), "utf-8")
    return page


def summary(job: Job, state: State | None, figures: Figures) -> dict[str, Any]:
    """What report.json holds."""
    source, target = job.places
    wall = figures.ended - figures.began if figures.began is not None and figures.ended is not None else None
    return {
        "id": job.id,
        "state": state.value if state else "unfinished",
        "source": source,
        "destination": target,
        "command": command(job),
        "target": job.options.target,
        "options": {field.name: getattr(job.options, field.name) for field in fields(Options)},
        "model": {"version": job.model.version, "sha256": job.model.sha256, "follow": job.follow},
        "models_used": dict(figures.models.most_common()),
        "created": job.created,
        "began": figures.began,
        "ended": figures.ended,
        "seconds_queued": None if figures.began is None else round(max(0.0, figures.began - job.created), 1),
        "seconds_run": None if wall is None else round(wall, 1),
        "images": {name: figures.outcomes[name] for name in ("done", "failed", "skipped")},
        "megapixels": round(figures.pixels / 1e6, 3),
        "megapixels_per_second": round(figures.pixels / 1e6 / wall, 3) if wall else None,
        "psnr": {
            "kind": "reference" if job.options.reference else "self-degradation",
            "images": figures.psnr["vdsr"].n,
            "exact": figures.exact,
            "without": dict(figures.without.most_common()),
            **{name: _spread(distribution) for name, distribution in figures.psnr.items()},
        },
        "lr_consistency": {
            "images": figures.lr_consistency.n,
            **_spread(figures.lr_consistency),
            "lowest": figures.lr_consistency.quantile(0),
            "lowest_key": figures.least_consistent.key if figures.least_consistent else None,
        },
        "failures": dict(figures.failures.most_common()),
        "notes": dict(figures.notes.most_common()),
        "seconds_by_stage": {name: round(seconds, 2) for name, seconds in figures.seconds.items()},
        "protocol": PROTOCOL,
        "version": __version__,
    }


def command(job: Job) -> str:
    """The command that asks for the same job again."""
    words = ["vdsr", "submit", *job.places, *([] if job.options.sized else ["--scale", f"{job.options.scale:g}"])]
    flags = {"reference_key": None, "scale": None, "recursive": "--no-recursive", "score": "--no-score"}
    flags["max_megapixels"] = "--max-mp"
    for field in fields(Options):
        value, name = getattr(job.options, field.name), field.name
        if value == field.default or flags.get(name, "") is None:
            continue
        if isinstance(value, bool):
            words.append(flags.get(name) or f"--{name.replace('_', '-')}")
        else:
            for each in value if isinstance(value, tuple) else [value]:
                words += [flags.get(name) or f"--{name.replace('_', '-')}", str(each)]
    words += ["--files-from", "LIST"] if job.named else []
    words += ["--model", "follow" if job.follow else job.model.version]
    return shlex.join(words)


def _samples(figures: Figures, parts: Parts, page: Path, settings: Settings) -> dict[str, Sample]:
    """By key."""
    job = parts.job
    source, target = open_storage(job.source, settings), open_storage(parts.destination, settings)
    rows = {row.key: row for row in (*figures.best, *figures.worst)}

    def look(row: Outcome) -> Sample:
        found = sample(row, job, settings, source=source, target=target)
        return replace(found, link=_link(row, target, page))

    with ThreadPoolExecutor(2) as readers:  # a picture of 64 megapixels takes half a gigabyte
        return dict(zip(rows, readers.map(look, rows.values()), strict=True))


def _link(row: Outcome, target: Storage, page: Path) -> str:
    """From the page to an output on the same disk; it holds as long as the two keep their places to each other."""
    with suppress(StorageError):
        if isinstance(target, LocalStorage) and target.exists(row.output):
            return quote(os.fsencode(os.path.relpath(Path(target.uri, row.output), page.parent.absolute())))
    return ""


def _spread(distribution: Distribution) -> dict[str, float | None]:
    mean = distribution.mean
    quantiles = {name: distribution.quantile(share) for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))}
    return {"mean": None if mean is None else round(mean, 4), **quantiles}


def _cells(row: Outcome) -> list[Any]:
    psnr = row.psnr or {}
    figures = [psnr.get(name) for name in ("bicubic", "vdsr", "gain")]
    seconds = ";".join(f"{name}={spent:g}" for name, spent in row.seconds.items())
    texts = [_inert(text) for text in (row.key, row.output)]
    return [
        *texts, row.outcome, row.code, _inert(row.message or ""), *figures, row.width, row.height,
        psnr.get("lr_consistency"), row.size_bytes, row.model, row.worker, row.finished, seconds, "; ".join(row.notes),
    ]  # fmt: skip


def _inert(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
