"""`vdsr resume`: a job from the record at its destination."""

from __future__ import annotations

import click

from cli.completing import paths


@click.command(name="resume", epilog="Example: vdsr resume s3://bucket/scans-x4   (after Redis was lost)")
@click.argument("destination", shell_complete=paths)
@click.option("--job", help="Only this one; it may also have failed, or been cancelled.")
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended.")
def command(destination: str, job: str | None, wait: bool) -> int:
    """Go on with the jobs of DESTINATION that Redis has forgotten.

    What they did is kept: their records lie at DESTINATION/.vdsr.
    """
    from cli.output import job_line, say
    from cli.wait import wait_for
    from worker.client import Client
    from worker.settings import load_settings
    from worker.uris import resolve

    settings = load_settings()
    client = Client.connect(settings)
    resumed = client.resume(resolve(destination, settings).uri, job)
    for job_id in resumed:
        say(f"job {job_id} goes on: {job_line(client.ledger.record(job_id).job)}")
        click.echo(job_id)
    return max([wait_for(client, job_id, timeout_s=None) for job_id in resumed]) if wait else 0
