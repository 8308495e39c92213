"""`vdsr report`: a page about a job, with pictures."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report", epilog="Example: vdsr report photos-x2 -o report/report.html")
@click.argument("job")
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
    from worker.errors import NotFound
    from worker.jobs import JOB_ID
    from worker.ledger import Ledger
    from worker.parts import Parts, job_ids
    from worker.report.files import write_report
    from worker.settings import load_settings
    from worker.uris import resolve

    settings = load_settings()
    if JOB_ID.fullmatch(job):
        destination, chosen = Ledger(settings.redis_url).record(job).job.destination, job
    else:
        destination = resolve(job, settings).uri
    if chosen is None:
        known = job_ids(destination, settings)
        if not known:
            raise NotFound(f"there is no record of a job at {destination}; give the destination of a job, or its id")
        chosen = known[-1]
    parts, state = Parts.at(destination, chosen, settings)
    write_report(parts, state, output, settings, pictures=pictures)
    say(f"job {chosen}: report.json, results.csv and failed.csv lie beside")
    click.echo(output)
    return 0
