"""Who notices that work was lost? A thread in every worker; a lock in Redis has one of them at it at a time.

It also reports that this worker is alive. It runs in Celery's parent process, which has no torch.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from worker.app import QUEUE, Queue
from worker.errors import TransientError
from worker.ledger import Ledger
from worker.settings import Settings, load_settings

EVERY_S = 5.0

log = logging.getLogger(__name__)


class Sweeper(threading.Thread):
    """Queues again what is overdue, every few seconds."""

    def __init__(self, settings: Settings, name: str, queue: Queue) -> None:
        super().__init__(name="sweeper", daemon=True)
        self.worker = name
        self.ledger = Ledger(settings.redis_url)
        self.queue = queue
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while True:
            try:
                self.ledger.report_worker(self.worker)
                if self.ledger.claim("sweeper", self.worker, 2 * EVERY_S):
                    self.sweep()
            except TransientError as exc:
                log.warning("%s", exc)
            except Exception:  # whatever it is, nothing would be swept any more without this thread
                log.exception("the sweeper met a fault of this program, and goes on")
            if self._stopped.wait(EVERY_S):
                return

    def sweep(self) -> None:
        """Once over every active job."""
        empty = self.ledger.queue_length(QUEUE) == 0
        for job_id in self.ledger.active():
            for member in self.ledger.sweep(job_id, queue_empty=empty):
                log.info("queueing %s of job %s again", member, job_id)
                self.queue.member(job_id, member)

    def stop(self) -> None:
        """Report this worker as gone, and end."""
        self._stopped.set()
        try:
            self.ledger.forget_worker(self.worker)
        except TransientError as exc:
            log.warning("%s", exc)


_sweepers: list[Sweeper] = []  # the one of this process, for the signals below


@worker_ready.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _start(sender: Any, **_: Any) -> None:
    settings = load_settings()
    sweeper = Sweeper(settings, sender.hostname, Queue(settings, sender.app))
    _sweepers.append(sweeper)
    sweeper.start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _stop(**_: Any) -> None:
    while _sweepers:
        _sweepers.pop().stop()
