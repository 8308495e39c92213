"""Which messages does a worker take? Four, each with ids only; each may come twice, late, or in any order."""

from __future__ import annotations

import logging

from celery import Task, shared_task

from vdsr.device import choose_device
from worker import app, tracing
from worker.chunk import HOPELESS, do_chunk, take_turn
from worker.finish import finish_job
from worker.fleet import ORDINARY, SENT
from worker.jobs import State
from worker.ledger import FINISH
from worker.logs import concerning
from worker.plan import plan_job
from worker.runtime import runtime
from worker.taking import taking

log = logging.getLogger(__name__)

MOST_CHUNKS = 1 << 32
"""As many bits as a bitmap of Redis has."""


@shared_task(name=app.PLAN, bind=True)  # type: ignore[untyped-decorator]  # celery has no types
def plan(self: Task, job_id: str) -> None:
    """List more of a job's source, and queue the chunks."""
    _check(job_id)
    here = runtime()
    with concerning(job=job_id), tracing.task(app.PLAN, job=job_id), taking(self.request, here.queue):
        try:
            plan_job(
                here.ledger,
                job_id,
                here.settings,
                choose_device(here.settings.device).type,
                lambda chunk: here.queue.upscale(job_id, chunk),
            )
        except HOPELESS as exc:
            log.error("job %s fails while it is listed: %s", job_id, exc)
            here.ledger.stop(job_id, State.FAILED, str(exc))
            here.queue.member(job_id, FINISH)


@shared_task(name=app.UPSCALE, bind=True)  # type: ignore[untyped-decorator]  # as above
def upscale(self: Task, job_id: str, chunk: int) -> None:
    """Do a chunk: this one, or first that of a job whose turn it is."""
    _check(job_id, chunk)
    here = runtime()
    headers, worker = self.request.headers or {}, self.request.hostname
    sent = headers.get(SENT)
    when = sent if isinstance(sent, float) else None
    with taking(self.request, here.queue):
        at_once = self.request.delivery_info.get("priority") != ORDINARY
        due = take_turn(here, job_id, chunk, at_once=at_once, sent=when)
        if due != (job_id, chunk):  # whose message waits on, and nobody knows since when
            (job_id, chunk), when = due, None
        traced = tracing.task(app.UPSCALE, headers, job=job_id, chunk=chunk, worker=worker)
        with concerning(job=job_id, chunk=chunk), traced:
            do_chunk(here, job_id, chunk, worker=worker, sent=when)


@shared_task(name=app.FINISH, bind=True)  # type: ignore[untyped-decorator]  # as above
def finish(self: Task, job_id: str) -> None:
    """Write a job's last record and close it."""
    _check(job_id)
    here = runtime()
    with concerning(job=job_id), tracing.task(app.FINISH, job=job_id), taking(self.request, here.queue):
        finish_job(here.ledger, job_id, here.settings)


@shared_task(name=app.TRAIN, bind=True)  # type: ignore[untyped-decorator]  # as above
def train(self: Task, run_id: str) -> None:
    """Do what is left of a training run."""
    from worker.training.task import do_training

    here = runtime()
    with concerning(run=run_id), taking(self.request, here.queue):
        do_training(here, run_id)


def _check(job_id: str, chunk: int = 0) -> None:
    """Whoever may write to the queue may write anything; what is no id must not be taken for Redis' refusal."""
    if not isinstance(job_id, str) or type(chunk) is not int or not 0 <= chunk < MOST_CHUNKS:
        raise TypeError(f"{job_id!r:.100} and {chunk!r:.100} are no id of a job and number of a chunk")
