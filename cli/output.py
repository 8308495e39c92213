"""How do figures look to people? Results on stdout, talk and progress on stderr; bars only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from worker.jobs import Job, Outcome

BAR = 30  # characters
QUIET = "vdsr.quiet"
"""In a click context's `meta`."""
PROXY = "a proxy: the centre of each picture, shrunk and restored"


def say(text: str) -> None:
    """Talk: to stderr, out of a script's way; nothing with --quiet."""
    if not is_quiet():
        click.echo(text, err=True)


def is_quiet() -> bool:
    """Whether the user asked for results and errors only."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(QUIET))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    # What is no Unicode, of a file name that is not UTF-8, becomes JSON's own escape: \udce9.
    click.echo(text.encode(errors="backslashreplace").decode())


def print_line(text: str) -> None:
    """A line on stdout that may hold names which are not Unicode."""
    click.echo(text.encode(errors="backslashreplace").decode())


def print_event(name: str, facts: dict[str, Any]) -> None:
    """One line of JSON on stdout, at once."""
    print_line(json.dumps({"event": name, **facts}, ensure_ascii=False))


def job_line(job: Job) -> str:
    """What was resolved from the user's words."""
    source, target = job.places
    return f"{printable(source)} -> {printable(target)}, {job.options.target}"


def status_text(summary: dict[str, Any], unseen_s: float = 0.0, *, where: str | None = None) -> str:
    """A job's state, for reading.

    Args:
        unseen_s: how long no worker was seen; those seen lately count as seen now.
        where: what tells more of failures; None names the command that does.
    """
    model = summary["model"]
    lines = [
        f"{summary['id']}  {_state(summary)}",
        f"{printable(summary['source'])} -> {printable(summary['destination'])}",
        f"x{summary['scale']:g}, model {model['version']} ({model['sha256'][:12]})",
        progress_line(summary),
    ]
    if summary["megapixels_per_second"]:
        lines.append(
            f"{summary['megapixels']:,.1f} MP in {duration(summary['seconds'])}, "
            f"{summary['megapixels_per_second']:.2f} MP/s"
        )
    if line := psnr_line(summary["psnr"]):
        lines.append(line)
    if summary["failures"]:
        failed = f"'vdsr status {summary['id']} --failed'"
        failures = ", ".join(f"{code} {n:,}" for code, n in summary["failures"].items())
        lines.append(f"failures: {failures}; see {where or failed}")
    if summary["error"]:
        lines.append(f"error: {summary['error']}")
    if unseen_s and summary["state"] in ("queued", "running"):
        lines.append(absence_line(summary, unseen_s))
    return "\n".join(lines)


def absence_line(summary: dict[str, Any], unseen_s: float) -> str:
    """That a job waits for workers, of which none has been seen for some time (infinity: ever)."""
    images = summary["images"]
    waiting = images["total"] - images["done"] - images["failed"] - images["skipped"]
    what = f"{waiting:,} images queued" if waiting else "the job is queued"
    since = "" if unseen_s == float("inf") else f" for {duration(unseen_s)}"
    return f"{what} and no worker seen{since}; start 'vdsr worker' on a node with this Redis, or 'vdsr dev'"


def progress_line(summary: dict[str, Any]) -> str:
    """The bar with its counts."""
    images = summary["images"]
    if not images["total"] and summary["state"] in ("queued", "running"):
        return "waiting for a worker to list the images"
    ended = sum(images[name] for name in ("done", "failed", "skipped"))
    total = images["total"]
    share = ended / total if total else float(summary["state"] == "completed")
    filled = int(BAR * share)
    parts = [f"{images[name]:,} {name}" for name in ("done", "failed", "skipped") if images[name]]
    left_out = f"; {images['ignored']:,} other files left out" if images["ignored"] else ""
    eta = f", {duration(summary['eta_s'])} left" if summary["eta_s"] is not None else ""
    count = f"{ended:,} of {total:,}{'' if summary['listed'] else ' listed so far'} images"
    return f"[{'#' * filled}{'-' * (BAR - filled)}] {count} ({', '.join(parts) or 'none yet'}{left_out}){eta}"


def psnr_line(psnr: dict[str, Any]) -> str | None:
    """Mean PSNR-Y, saying what it is measured against."""
    notes = [f"{psnr[name]:,} {words}" for name, words in (("exact", "exact"), ("without", "without")) if psnr[name]]
    if psnr["vdsr"] is None:
        return f"PSNR-Y: none ({', '.join(notes)})" if notes else None
    against = "against the reference" if psnr["kind"] == "reference" else f"self-degradation, {PROXY}"
    more = f"; {', '.join(notes)}" if notes else ""
    return (
        f"PSNR-Y: bicubic {psnr['bicubic']:.2f} dB, VDSR {psnr['vdsr']:.2f} dB, gain {psnr['gain']:+.2f} dB, "
        f"mean of {psnr['images']:,} images{more}\n        ({against})"
    )


def outcome_table(rows: Iterable[Outcome]) -> str:
    """A line an image with its PSNR, for small jobs."""
    table: list[tuple[str, ...]] = [("image", "output", "bicubic", "VDSR", "gain")]
    for row in rows:
        size = f"{row.width} x {row.height}" if row.width else f"{row.outcome}: {row.code or 'output is there'}"
        psnr = row.psnr or {"bicubic": None, "vdsr": None, "gain": None}
        table.append((printable(row.key), size, *(_decibel(psnr[name]) for name in ("bicubic", "vdsr", "gain"))))
    return aligned(table)


def left_aligned(table: list[tuple[str, ...]]) -> str:
    """Columns of words side by side, all flush left."""
    widths = [max(_width(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell + " " * (w - _width(cell)) for w, cell in zip(widths, row, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def aligned(table: list[tuple[str, ...]]) -> str:
    """Columns side by side: the first flush left, the others right; wide characters count as two."""
    widths = [max(_width(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        gaps = [" " * (width - _width(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """A span of time in words: "45 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size_text(size_bytes: float) -> str:
    """A size in words: "731 bytes", "12.4 MB", "1.3 TB"; powers of 1,000."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size_bytes /= 1000
        if size_bytes < 999.95:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1000:,.1f} TB"


def printable(text: str) -> str:
    """A name that cannot move the cursor or break the terminal's encoding."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def live(enabled: bool) -> Iterator[Any]:
    """A function that redraws one line on a terminal's stderr; draws nothing elsewhere.

    It takes the line, or a function that makes it for a width in characters.
    """
    if not enabled or is_quiet() or not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as display:

        def draw(line: Any) -> None:
            text = line(console.width) if callable(line) else line
            display.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

        yield draw


def _state(summary: dict[str, Any]) -> str:
    if summary["state"] == "completed" and summary["images"]["failed"]:
        return "completed, with failures"
    return str(summary["state"])


def _decibel(value: float | str | None) -> str:
    return "-" if value is None else "inf" if value == "inf" else f"{value:.2f}"


def _width(text: str) -> int:
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
