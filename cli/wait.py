"""`vdsr wait`: until a job has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.completing import jobs_and_runs
from cli.options import as_json, events

if TYPE_CHECKING:
    from worker.client import Client


@click.command(name="wait", epilog="Example: vdsr wait 20261123-041502-x7qd2 --timeout 3600")
@click.argument("job", shell_complete=jobs_and_runs)
@click.option("--timeout", "timeout_s", type=float, help="Seconds to wait at most; exit code 124 after that.")
@as_json
@events
def command(job: str, timeout_s: float | None, as_json: bool, events: bool) -> int:
    """Wait until JOB, or a training run, has ended; the exit code is 0, 3 (images failed) or 4 (failed, cancelled)."""
    from cli.output import print_json
    from cli.runs import follow_run, is_run
    from worker.client import Client
    from worker.errors import UsageError
    from worker.settings import load_settings
    from worker.summary import summarise

    settings = load_settings()
    if is_run(job):
        if events:
            raise UsageError(f"{job} is a training run, which has no --events; use --json")
        return follow_run(settings, job, as_json=as_json, timeout_s=timeout_s)
    client = Client.connect(settings)
    code = wait_for(client, job, timeout_s=timeout_s, quiet=as_json or events, events=events)
    if as_json and not events:
        print_json(summarise(client.ledger.record(job)))
    return code


def wait_for(client: Client, job_id: str, *, timeout_s: float | None, quiet: bool = False, events: bool = False) -> int:
    """Wait with a live bar, then tell the result; the exit code.

    Args:
        quiet: neither bar nor result.
        events: print JSON lines on stdout.
    """
    from cli.output import live, print_event, say, status_text
    from cli.progress import Progress
    from worker.summary import exit_code, summarise

    with live(not quiet) as draw:
        progress = Progress(draw, events=events, unseen_s=client.unseen_s)
        record = client.wait(job_id, timeout_s=timeout_s, on_look=progress.look)
    if record is None:
        say(f"job {job_id} has not ended after {timeout_s:g} s; see 'vdsr status {job_id}'")
        return 124
    summary = summarise(record)
    if events:
        print_event("ended", {**summary, "exit_code": exit_code(summary)})
    elif not quiet:
        say(status_text(summary))
    return exit_code(summary)
