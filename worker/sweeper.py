"""Who notices that work was lost? A thread in every worker; a lock in Redis has one of them at it at a time.

It also reports that this worker is alive, and tells Redis what is in production should a promotion not have been able
to. It runs in Celery's parent process, which has no torch.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from celery.worker.state import active_requests

from vdsr.errors import VdsrError
from worker.app import QUEUE, TRAINING, Queue, members
from worker.errors import TransientError
from worker.fleet import Fleet
from worker.ledger import Ledger
from worker.registry import PRODUCTION, Registry
from worker.settings import Settings, load_settings
from worker.training.ledger import RunLedger

EVERY_S = 5.0
QUEUE_EVERY = 3
"""Rounds between two looks at what the queue holds: at most a thousand messages a job."""
PRODUCTION_EVERY = 6
"""Rounds between two looks at the registry."""

log = logging.getLogger(__name__)


class Sweeper(threading.Thread):
    """Queues again what is overdue, every few seconds."""

    def __init__(self, settings: Settings, name: str, queues: list[str], queue: Queue) -> None:
        """
        Args:
            name: of the worker.
            queues: whose messages it takes.
        """
        super().__init__(name="sweeper", daemon=True)
        self.settings, self.worker, self.queues, self.queue = settings, name, queues, queue
        self.ledger, self.runs = Ledger(settings.redis_url), RunLedger(settings.redis_url)
        self.fleet = Fleet(settings.redis_url)
        self._rounds = 0
        self._teller: threading.Thread | None = None
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while True:
            try:
                self.fleet.report_worker(self.worker, self.queues, _in_hand())
                if self.fleet.claim("sweeper", self.worker, 2 * EVERY_S):
                    self.sweep()
            except TransientError as exc:
                log.warning("%s", exc)
            except Exception:  # whatever it is, nothing would be swept any more without this thread
                log.exception("the sweeper met a fault of this program, and goes on")
            if self._stopped.wait(EVERY_S):
                return

    def sweep(self) -> None:
        """Once over every active job and run."""
        empty = self.fleet.queue_length(QUEUE) == 0
        looks = not empty and self._rounds % QUEUE_EVERY == 0
        waiting = members(self.fleet.messages(QUEUE)) if looks else {}
        for job_id in self.ledger.active():
            due = self.ledger.sweep(job_id, queue_empty=empty)
            if looks:
                due += self.ledger.lost(job_id, waiting.get(job_id, ()))
            for member in due:
                about = {"job": job_id, **({"chunk": int(member)} if member.isdigit() else {})}
                log.info("queueing %s of job %s again", member, job_id, extra=about)
                self.queue.member(job_id, member)
        for run_id in self.runs.sweep(queue_empty=self.fleet.queue_length(TRAINING) == 0):
            log.info("queueing training run %s again", run_id, extra={"run": run_id})
            self.queue.train(run_id)
        if self._rounds % PRODUCTION_EVERY == 0 and not (self._teller and self._teller.is_alive()):
            # On a thread of its own: a storage that hangs must not keep lost work from being found.
            self._teller = threading.Thread(target=self._tell_production, name="production", daemon=True)
            self._teller.start()
        self._rounds += 1

    def stop(self) -> None:
        """Report this worker as gone, and end."""
        self._stopped.set()
        try:
            self.fleet.forget_worker(self.worker, self.queues)
        except TransientError as exc:
            log.warning("%s", exc)

    def _tell_production(self) -> None:
        """Redis may have been away, or wiped, when something was promoted."""
        try:
            alias = Registry(self.settings).alias(PRODUCTION)
            if alias is not None and self.fleet.announce(alias.serial, alias.version):
                told = {"model": alias.version}
                log.info("model %s is in production; the workers are told", alias.version, extra=told)
        except VdsrError as exc:
            log.warning("cannot tell what is in production: %s", exc)


def _in_hand() -> set[str]:
    """The queues of which this worker has a task in hand."""
    # As text: whoever may write to the queue may put anything there.
    return {str(request.delivery_info.get("routing_key")) for request in tuple(active_requests)}


_sweepers: list[Sweeper] = []  # the one of this process, for the signals below


@worker_ready.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _start(sender: Any, **_: Any) -> None:
    settings = load_settings()
    queues = list(sender.app.amqp.queues.consume_from)
    sweeper = Sweeper(settings, sender.hostname, queues, Queue(settings, sender.app))
    _sweepers.append(sweeper)
    sweeper.start()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _stop(**_: Any) -> None:
    while _sweepers:
        _sweepers.pop().stop()
