"""`vdsr logs`: what became of each image, by whom and when."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cli.completing import jobs_and_paths
from cli.options import as_json

if TYPE_CHECKING:
    from worker.jobs import Outcome


@click.command(name="logs", epilog="Example: vdsr logs photos-x2 | grep -v ' done '")
@click.argument("job", shell_complete=jobs_and_paths)
@click.option(
    "--job", "chosen", metavar="ID", help="Which job, if JOB is a destination with several  [default: the last]"
)
@as_json
def command(job: str, chosen: str | None, as_json: bool) -> int:
    """Print a line for each image of JOB: an id, or the destination of one, which needs no Redis.

    It is read from the record at the destination: chunk by chunk, each chunk once it is done. What workers say beside
    that stands in their own logs: 'vdsr dev' and 'vdsr worker' leave those to the terminal or supervisor.
    """
    import json
    from dataclasses import asdict

    from cli.output import print_line
    from worker.places import find_parts
    from worker.settings import load_settings

    parts, _ = find_parts(job, chosen, load_settings())
    for chunk, rows in parts.all_results():
        for row in sorted(rows, key=lambda row: row.finished or 0):
            print_line(json.dumps({"chunk": chunk, **asdict(row)}, ensure_ascii=False) if as_json else _line(row))
    return 0


def _line(row: Outcome) -> str:
    """Time (of this machine's zone), worker, outcome, seconds, image, and all that there is to say."""
    from cli.output import printable

    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.finished)) if row.finished else "-"
    words = [row.code or "", row.message or "", *row.notes]
    said = ": ".join(word for word in words if word)
    seconds = f"{sum(value for name, value in row.seconds.items() if name != 'network'):.2f} s"
    return printable(
        f"{moment}  {row.worker or '-'}  {row.outcome}  {seconds}  {row.key}{f'  ({said})' if said else ''}"
    )
