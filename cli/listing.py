"""`vdsr list`: the jobs and training runs that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from cli.options import as_json


@click.command(name="list", epilog="Example: vdsr list --json | jq -r '.[].id'")
@as_json
def command(as_json: bool) -> int:
    """List the jobs and training runs of the last 30 days, newest first."""
    from cli.output import aligned, print_json, printable
    from cli.runs import run_facts
    from worker.client import Client
    from worker.settings import load_settings
    from worker.summary import summarise
    from worker.training.ledger import RunLedger

    settings = load_settings()
    client, runs = Client.connect(settings), RunLedger(settings.redis_url)
    summaries = list(_known(lambda job_id: summarise(client.ledger.record(job_id)), client.ledger.job_ids()))
    trainings = list(_known(lambda run_id: run_facts(runs.record(run_id)), runs.run_ids()))
    if as_json:
        print_json(summaries + trainings)
        return 0
    if summaries:
        table: list[tuple[str, ...]] = [("job", "state", "images", "failed", "source")]
        for s in summaries:
            images = s["images"]
            ended = images["done"] + images["failed"] + images["skipped"]
            counts = (f"{ended:,}/{images['total']:,}", f"{images['failed']:,}")
            table.append((s["id"], s["state"], *counts, printable(s["source"])))
        click.echo(aligned(table))
    if trainings:
        table = [("training run", "state", "steps", "version", "data")]
        for t in trainings:
            steps = f"{t['progress'].get('step', 0):,}/{t['recipe']['steps']:,}"
            table.append((t["id"], t["state"], steps, printable(t["version"]), ", ".join(map(printable, t["data"]))))
        click.echo(aligned(table))
    if not (client.ledger.job_ids() or trainings):
        click.echo("no jobs yet; see 'vdsr submit --help'", err=True)
    return 0


def _known(look: Callable[[str], dict[str, Any]], ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What there is to tell of each, but for those of newer versions, which are named on stderr."""
    from worker.errors import NewerFormat

    for each in ids:
        try:
            yield look(each)
        except NewerFormat as exc:
            click.echo(f"left out: {exc}", err=True)
