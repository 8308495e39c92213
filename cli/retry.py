"""`vdsr retry`: failed images again."""

from __future__ import annotations

import click

from cli.completing import jobs


@click.command(name="retry", epilog="Example: vdsr retry 20261123-041502-x7qd2 --wait")
@click.argument("job", shell_complete=jobs)
@click.option("--wait", is_flag=True, help="Wait until the job has ended again.")
def command(job: str, wait: bool) -> int:
    """Do the failed images of a completed JOB again, under the same id."""
    from cli.output import say
    from cli.wait import wait_for
    from worker.client import Client
    from worker.settings import load_settings

    client = Client.connect(load_settings())
    count = client.retry(job)
    say(f"{count:,} images of job {job} are queued again" if count else f"job {job} has no failed images")
    return wait_for(client, job, timeout_s=None) if wait and count else 0
