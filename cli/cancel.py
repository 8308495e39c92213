"""`vdsr cancel`: stop a job."""

from __future__ import annotations

import click


@click.command(name="cancel")
@click.argument("job")
def command(job: str) -> int:
    """Stop JOB within the image in hand. Finished images stay."""
    from cli.output import say
    from worker.client import Client
    from worker.settings import load_settings

    before = Client.connect(load_settings()).cancel(job)
    say(f"job {job} had already ended: {before.value}" if before.ended else f"job {job} is cancelled")
    return 0
