"""`vdsr upscale`: the same job as `submit`, with a Redis and a worker of its own for as long as it runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.completing import paths
from cli.options import as_json, dry_run, events, files_from, job_options, read_named, read_options

if TYPE_CHECKING:
    from worker.client import Client
    from worker.filelist import Named
    from worker.jobs import Job
    from worker.ledger import Record
    from worker.settings import Settings

TABLE = 30
"""Up to this many images, the result is a table with a line for each."""


@click.command(name="upscale", epilog="Example: vdsr upscale photos --scale 2   (into photos-x2)")
@click.argument("source", shell_complete=paths)
@click.argument("destination", required=False, shell_complete=paths)
@job_options
@files_from
@dry_run
@as_json
@events
def command(
    source: str,
    destination: str | None,
    model: str | None,
    files_from: str | None,
    null: bool,
    dry_run: bool,
    as_json: bool,
    events: bool,
    **options: Any,
) -> int:
    """Upscale SOURCE here and now.

    SOURCE is a folder, a file, or s3://bucket/prefix; DESTINATION defaults to SOURCE-x2 (the scale) beside it.
    """
    from cli.output import job_line, say
    from worker.client import draft
    from worker.settings import load_settings

    settings = load_settings()
    named = read_named(source, files_from, null=null, settings=settings)
    job = draft(source, destination, read_options(**options), settings, model=model, named=named)
    say(job_line(job))
    if dry_run:
        from cli.dry_run import show_forecast

        return show_forecast(job, settings, None, as_json=as_json, named=named)
    with tempfile.TemporaryDirectory(prefix="vdsr-") as folder:  # short: a socket's path has 104 bytes at most
        return _run(job, named, settings, Path(folder), as_json=as_json, events=events)


def _run(job: Job, named: Named | None, settings: Settings, folder: Path, *, as_json: bool, events: bool) -> int:
    import dataclasses

    from cli.output import live, print_event
    from cli.progress import Progress
    from worker.client import Client
    from worker.embedded import SOCKET, LocalRedis, LocalWorker
    from worker.summary import exit_code, summarise

    # Once the job has ended there is nothing to wait for: no grace.
    mine = dataclasses.replace(settings, redis_url=f"unix://{folder / SOCKET}", grace_s=0)
    with LocalRedis(folder) as redis, LocalWorker(mine, folder) as worker:
        client = Client.connect(mine)
        client.submit(job, named)
        try:
            with live(not (as_json or events)) as draw:

                def keep_up() -> None:
                    redis.keep_up()
                    worker.keep_up()

                progress = Progress(draw, events=events)
                record = client.wait(job.id, on_look=progress.look, before_look=keep_up, patience_s=60)
        except KeyboardInterrupt:
            _interrupted(client, job)
            return 130
        assert record is not None  # there is no time limit
        deadline = time.monotonic() + 20
        while client.ledger.is_open(job.id) and time.monotonic() < deadline:  # until job.json says how it ended
            time.sleep(0.05)
        if events:
            summary = summarise(record)
            print_event("ended", {**summary, "exit_code": exit_code(summary)})
            return exit_code(summary)
        return _tell(client, record, settings, as_json)


def _interrupted(client: Client, job: Job) -> None:
    """Let the worker leave the image in hand and write down what is done."""
    from cli.output import printable, say
    from worker.summary import summarise

    client.cancel(job.id)
    say("stopping after the tile in hand; Ctrl-C again to stop at once")
    deadline = time.monotonic() + 20
    while client.ledger.is_open(job.id) and time.monotonic() < deadline:
        time.sleep(0.1)
    done = summarise(client.ledger.record(job.id))["images"]["done"]
    say(f"interrupted: {done:,} images are finished at {printable(job.destination)}; the same command does the rest")


def _tell(client: Client, record: Record, settings: Settings, as_json: bool) -> int:
    from cli.output import outcome_table, print_json, printable, psnr_line, say, status_text
    from worker.parts import Parts, final_rows, record_uri
    from worker.summary import exit_code, summarise

    summary = summarise(record)
    if as_json:
        print_json(summary)
        return exit_code(summary)
    small = summary["images"]["total"] <= TABLE and not summary["error"]
    rows = list(final_rows(Parts(record.job, settings)).values()) if small else []
    if rows:
        click.echo(outcome_table(rows))
        if line := psnr_line(summary["psnr"]):
            click.echo(line)
        for row in rows:
            for note in (row.message, *row.notes):
                if note:
                    say(f"{printable(row.key)}: {printable(note)}")
    else:
        click.echo(status_text(summary, where="the results"))
        for row in client.failed(record.job.id)[:TABLE]:
            say(f"{printable(row.key)}: {row.code}: {printable(row.message or '')}")
    if summary["images"]["done"] + summary["images"]["failed"]:
        say(f"results: {printable(record_uri(record.job))}/results")
    return exit_code(summary)
