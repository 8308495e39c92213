"""`vdsr cancel`: stop a job."""

from __future__ import annotations

import click

from cli.completing import jobs_and_runs


@click.command(name="cancel", epilog="Example: vdsr cancel 20261123-041502-x7qd2")
@click.argument("job", shell_complete=jobs_and_runs)
def command(job: str) -> int:
    """Stop JOB within the image in hand, or a training run within a step. What is finished stays."""
    from cli.output import say
    from cli.runs import is_run
    from worker.client import Client
    from worker.jobs import State
    from worker.settings import load_settings
    from worker.training.ledger import RunLedger

    settings = load_settings()
    if is_run(job):
        before = RunLedger(settings.redis_url).end(job, State.CANCELLED)
    else:
        before = Client.connect(settings).cancel(job)
    say(f"{job} had already ended: {before.value}" if before.ended else f"{job} is cancelled")
    return 0
