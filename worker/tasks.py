"""Which messages does a worker take? Four, each with ids only; each may come twice, late, or in any order."""

from __future__ import annotations

from celery import Task, shared_task

from vdsr.device import choose_device
from worker import app
from worker.chunk import HOPELESS, do_chunk
from worker.finish import finish_job
from worker.jobs import State
from worker.ledger import FINISH
from worker.plan import plan_job
from worker.runtime import runtime


@shared_task(name=app.PLAN)  # type: ignore[untyped-decorator]  # celery has no types
def plan(job_id: str) -> None:
    """List more of a job's source, and queue the chunks."""
    here = runtime()
    try:
        plan_job(
            here.ledger,
            job_id,
            here.settings,
            choose_device(here.settings.device).type,
            lambda chunk: here.queue.upscale(job_id, chunk),
        )
    except HOPELESS as exc:
        here.ledger.stop(job_id, State.FAILED, str(exc))
        here.queue.member(job_id, FINISH)


@shared_task(name=app.UPSCALE, bind=True)  # type: ignore[untyped-decorator]  # as above
def upscale(self: Task, job_id: str, chunk: int) -> None:
    """Do a chunk of a job."""
    do_chunk(runtime(), job_id, chunk, worker=self.request.hostname)


@shared_task(name=app.FINISH)  # type: ignore[untyped-decorator]  # as above
def finish(job_id: str) -> None:
    """Write a job's last record and close it."""
    here = runtime()
    finish_job(here.ledger, job_id, here.settings)


@shared_task(name=app.TRAIN)  # type: ignore[untyped-decorator]  # as above
def train(run_id: str) -> None:
    """Do what is left of a training run."""
    from worker.training.task import do_training

    do_training(runtime(), run_id)
