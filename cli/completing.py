"""What may stand where a job or a model is asked for? Shells get nothing on any error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

LIMIT_S = 2
"""Of a shell's patience: a Redis or registry that does not answer completes nothing."""
MOST = 20
"""Jobs that are offered, newest first."""


def _offer(words: Callable[[str], list[CompletionItem]]) -> Callable[..., list[CompletionItem]]:
    """A completer as click wants it, that fails silently and in time: a traceback would land in the user's prompt."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        from vdsr.errors import VdsrError

        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.alarm(LIMIT_S)
        found: list[CompletionItem] = []
        with suppress(VdsrError, OSError):
            found = words(incomplete)
        signal.alarm(0)
        return found

    return complete


@_offer
def jobs(incomplete: str) -> list[CompletionItem]:
    """Ids of jobs, with state and source."""
    from cli.output import printable
    from worker.errors import NewerFormat
    from worker.ledger import Ledger
    from worker.settings import load_settings

    ledger = Ledger(load_settings().redis_url)
    ids = [job_id for job_id in ledger.job_ids() if job_id.startswith(incomplete)][:MOST]
    items = []
    for job_id in ids:
        with suppress(NewerFormat):
            r = ledger.record(job_id)
            items.append(
                CompletionItem(r.job.id, help=f"{r.state.value} {printable(r.job.places[0]).replace(':', ' ')}")
            )
    return items


@_offer
def runs(incomplete: str) -> list[CompletionItem]:
    """Ids of training runs."""
    from worker.settings import load_settings
    from worker.training.ledger import RunLedger

    ids = RunLedger(load_settings().redis_url).run_ids()
    return [CompletionItem(run_id) for run_id in ids if run_id.startswith(incomplete)][:MOST]


@_offer
def versions(incomplete: str) -> list[CompletionItem]:
    """Names of published models, of aliases, and of the weights that ship."""
    from worker.registry import CANDIDATE, PRODUCTION, SHIPPED, Registry
    from worker.settings import load_settings

    names = [*Registry(load_settings()).names(), PRODUCTION, CANDIDATE, SHIPPED]
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def jobs_and_runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Both, for commands that take either."""
    return jobs(ctx, param, incomplete) + runs(ctx, param, incomplete)


def jobs_and_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Jobs, else what the shell finds of files and folders."""
    return jobs(ctx, param, incomplete) or paths(ctx, param, incomplete)


def paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """Files and folders, which the shell itself completes."""
    return [CompletionItem(incomplete, type="file")]
