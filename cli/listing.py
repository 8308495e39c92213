"""`vdsr list`: the jobs that are known."""

from __future__ import annotations

import click

from cli.options import as_json


@click.command(name="list")
@as_json
def command(as_json: bool) -> int:
    """List the jobs of the last 30 days, newest first."""
    from cli.output import aligned, print_json, printable
    from worker.client import Client
    from worker.settings import load_settings
    from worker.summary import summarise

    client = Client.connect(load_settings())
    summaries = [summarise(client.ledger.record(job_id)) for job_id in client.ledger.job_ids()]
    if as_json:
        print_json(summaries)
    elif summaries:
        table: list[tuple[str, ...]] = [("job", "state", "images", "failed", "source")]
        for s in summaries:
            images = s["images"]
            ended = images["done"] + images["failed"] + images["skipped"]
            counts = (f"{ended:,}/{images['total']:,}", f"{images['failed']:,}")
            table.append((s["id"], s["state"], *counts, printable(s["source"])))
        click.echo(aligned(table))
    else:
        click.echo("no jobs yet; see 'vdsr submit --help'", err=True)
    return 0
