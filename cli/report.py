"""`vdsr report`: a page about a job, with pictures."""

from __future__ import annotations

from pathlib import Path

import click

from cli.completing import jobs_and_paths


@click.command(name="report", epilog="Example: vdsr report photos-x2 -o report/report.html")
@click.argument("job", shell_complete=jobs_and_paths)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page; report.json, results.csv and failed.csv go beside it.",
)
@click.option(
    "--job", "chosen", metavar="ID", help="Which job, if JOB is a destination with several  [default: the last]"
)
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Show the best and worst ten.")
def command(job: str, output: Path, chosen: str | None, pictures: bool) -> int:
    """Write a report of JOB: an id, or the destination of one, which needs no Redis."""
    from cli.output import say
    from vdsr.errors import VdsrError
    from worker.errors import UsageError
    from worker.places import find_parts
    from worker.report.files import write_report
    from worker.settings import load_settings

    settings = load_settings()
    parts, state = find_parts(job, chosen, settings)
    try:
        write_report(parts, state, output, settings, pictures=pictures)
    except OSError as exc:
        if isinstance(exc, VdsrError):  # of the record, and told as it is
            raise
        raise UsageError(f"cannot write {exc.filename or output}: {exc.strerror}; give another place by -o") from exc
    say(f"job {parts.job.id}: report.json, results.csv and failed.csv lie beside")
    click.echo(output)
    return 0
