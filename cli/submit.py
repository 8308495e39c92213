"""`vdsr submit`: a job for the workers."""

from __future__ import annotations

from typing import Any

import click

from cli.completing import paths
from cli.options import Choice, as_json, dry_run, events, files_from, job_options, read_named, read_options


@click.command(name="submit", epilog="Example: vdsr submit s3://bucket/scans s3://bucket/scans-x4 --scale 4")
@click.argument("source", shell_complete=paths)
@click.argument("destination", required=False, shell_complete=paths)
@job_options
@files_from
@click.option(
    "--priority",
    type=Choice(["high", "normal", "low"]),
    default="normal",
    show_default=True,
    help="Share of the workers while other jobs wait, each ten times that of the next.",
)
@click.option(
    "--wait", is_flag=True, help="Wait until the job has ended; the exit code is then its outcome. --events waits too."
)
@dry_run
@as_json
@events
def command(
    source: str,
    destination: str | None,
    model: str | None,
    files_from: str | None,
    null: bool,
    wait: bool,
    dry_run: bool,
    as_json: bool,
    events: bool,
    **options: Any,
) -> int:
    """Queue a job for SOURCE and print its id.

    SOURCE is a folder, a file, or s3://bucket/prefix; DESTINATION defaults to SOURCE-x2 (the scale) beside it.
    Local paths must be the same on every worker.
    """
    from cli.output import job_line, print_event, print_json, say
    from worker.client import Client, draft
    from worker.settings import load_settings

    settings = load_settings()
    named = read_named(source, files_from, null=null, settings=settings)
    job = draft(source, destination, read_options(**options), settings, model=model, named=named)
    if dry_run:
        from cli.dry_run import show_forecast
        from worker.ledger import Ledger

        say(job_line(job))
        return show_forecast(job, settings, Ledger(settings.redis_url), as_json=as_json, named=named)
    client = Client.connect(settings)
    say(job_line(job))
    job_id = client.submit(job, named)
    if job_id != job.id:
        say(f"job {job_id} is open and does just this; nothing was queued twice")
    if not (wait or events or client.workers()):
        say("no worker seen in the last 30 s; the job waits until one starts ('vdsr worker', or 'vdsr dev')")
    facts = {"id": job_id, "source": job.source, "destination": job.destination}
    if events:
        print_event("submitted", facts)
    elif as_json:
        print_json(facts)
    else:
        click.echo(job_id)
    if not (wait or events):
        return 0
    from cli.wait import wait_for

    return wait_for(client, job_id, timeout_s=None, quiet=events, events=events)
