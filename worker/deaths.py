"""What becomes of the work of a process that died? Celery's own process outlives it, and gives it back at once.

What was in hand is suspected: pictures do end processes, by a decoder's fault or for want of memory. Where a whole node
goes, nobody is left to tell: its leases run out (worker.sweeper), and that alone says little about a picture.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import celery
from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.worker import request as celery_request

from worker.app import Queue
from worker.errors import TransientError
from worker.ledger import Ledger
from worker.settings import load_settings

log = logging.getLogger(__name__)


def owner_name(worker: str, pid: int) -> str:
    """A process of a worker, in the tokens of its leases."""
    return f"{worker}:{pid}"


class Request(celery_request.Request):  # type: ignore[misc]  # celery has no types
    """A task in the hands of the pool."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Celery calls it, in its own process, when the task raised or its process died."""
        super().on_failure(exc_info, send_failed_event, return_ok)
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, WorkerLostError) and self.worker_pid:
            # Not on this thread, which takes messages: Redis may be away.
            words = (self.app, owner_name(self.hostname, self.worker_pid), str(exc))
            threading.Thread(target=_give_back, args=words, name="deaths", daemon=True).start()


class Task(celery.Task):  # type: ignore[misc]  # as above
    """Whose requests are these."""

    Request = Request


def _give_back(app: celery.Celery, owner: str, why: str) -> None:
    settings = load_settings()
    try:
        for job_id, chunk in Ledger(settings.redis_url).died(owner, why):
            about = {"job": job_id, "chunk": chunk}
            log.error("a process died in chunk %d of job %s, which goes back: %s", chunk, job_id, why, extra=about)
            Queue(settings, app).upscale(job_id, chunk, again=True)
    except TransientError as exc:
        log.warning("cannot tell that a process died; its lease will run out: %s", exc)
