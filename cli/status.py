"""`vdsr status`: how a job or training run stands."""

from __future__ import annotations

import click

from cli.completing import jobs_and_runs
from cli.options import as_json


@click.command(name="status", epilog="Example: vdsr status 20261123-041502-x7qd2 --watch")
@click.argument("job", shell_complete=jobs_and_runs)
@click.option("--watch", is_flag=True, help="Keep looking until the job has ended.")
@click.option("--failed", is_flag=True, help="List the images that failed, with code and message.")
@as_json
def command(job: str, watch: bool, failed: bool, as_json: bool) -> int:
    """Show how JOB, or a training run, stands: counts, speed, PSNR, failures by code."""
    import dataclasses

    from cli.output import print_json, printable, status_text
    from cli.runs import follow_run, is_run, show_run
    from cli.wait import wait_for
    from worker.client import Client
    from worker.errors import UsageError
    from worker.settings import load_settings
    from worker.summary import summarise

    settings = load_settings()
    if is_run(job):
        if failed:
            raise UsageError(f"{job} is a training run; --failed lists the images of a job")
        return follow_run(settings, job, as_json=as_json) if watch else show_run(settings, job, as_json=as_json)
    client = Client.connect(settings)
    if failed:
        rows = client.failed(job)
        if as_json:
            print_json([dataclasses.asdict(row) for row in rows])
        for row in rows if not as_json else ():
            click.echo(f"{printable(row.key)}\t{row.code}\t{printable(row.message or '')}")
        return 0
    if watch and not as_json:
        return wait_for(client, job, timeout_s=None)
    if watch:
        client.wait(job)
    summary = summarise(client.ledger.record(job))
    if as_json:
        print_json({**summary, "workers": len(client.workers())})
    else:
        click.echo(status_text(summary, client.unseen_s()))
    return 0
