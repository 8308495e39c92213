"""How does Celery run here? With the settings that lost nothing when workers and Redis were killed.

docs/architecture.md has the evidence.
Celery carries messages, and may lose or repeat them; the ledger knows what is done. Only ids travel.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from worker import tracing
from worker.errors import BrokerUnreachable
from worker.fleet import ORDINARY, SENT
from worker.settings import Settings
from worker.transport import MISREAD, register

QUEUE = "upscale"
TRAINING = "train"
"""A queue of its own: a training takes hours, and a worker takes one task at a time."""
PLAN = "vdsr.plan"
UPSCALE = "vdsr.upscale"
FINISH = "vdsr.finish"
TRAIN = "vdsr.train"
LAYOUT, LAYOUT_HEADER = 1, "vdsr_layout"
"""Version of what messages say, in a header of each; a worker leaves newer ones to newer workers."""
INCLUDED = (
    "worker.tasks", "worker.sweeper", "worker.stopping", "worker.heartbeat", "worker.logs", "worker.tracing",
    "worker.metrics.page",
)  # fmt: skip
"""What a worker loads: tasks, and what listens to Celery's signals."""


class App(Celery):  # type: ignore[misc]  # celery has no types
    """Celery, with a worker that stops as soon as it may, and gives back at once what a dead process of it held."""

    task_cls = "worker.deaths:Task"

    @cached_property
    def Worker(self) -> Any:  # noqa: N802  # Celery's name for it
        """See worker.stopping; a client never loads it."""
        return self.subclass_with_self("worker.stopping:Worker")


def make_app(settings: Settings) -> Celery:
    """The Celery application for a broker; connects to nothing yet."""
    register()
    app = App("vdsr", broker=settings.broker_url, include=INCLUDED)
    app.conf.update(
        broker_use_ssl=settings.broker_tls,
        task_serializer="json",
        accept_content=["json"],  # no pickle: a message cannot run code
        task_ignore_result=True,  # the ledger holds state
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # with acks_late: a killed child's message comes back (celery#1628)
        worker_pool="prefork",  # a segfault kills a child only; solo never consumes again once Redis restarted
        worker_pool_start_method="spawn",  # CUDA and threads do not survive a fork (celery#10339)
        worker_proc_alive_timeout=120,  # loading torch takes a busy machine more than 4 s: killed, and killed again
        worker_concurrency=1,  # one worker a device
        worker_prefetch_multiplier=1,
        # REMAP_SIGTERM=SIGQUIT: SIGTERM gives work back (celery#9213); worker.stopping waits no longer than needed
        worker_soft_shutdown_timeout=settings.grace_s,
        worker_cancel_long_running_tasks_on_connection_loss=True,  # 0 duplicates against 2 of 16
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # Redis may come later, or come back
        broker_transport_options={
            "visibility_timeout": 3600,  # twice the longest chunk; the lease recovers far sooner, and refuses repeats
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,  # 15 s to redelivery, not 98 (kombu#2558)
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,  # a half-open connection otherwise holds its tasks for ever
            "global_keyprefix": "vdsr:",  # one pattern for a Redis ACL
        },
    )
    return app


def members(messages: Iterable[str]) -> dict[str, set[str]]:
    """What messages in the queue name, by job id: chunk numbers (as text), "plan" and "finish".

    What is no message of ours names nothing; the worker that takes it drops it.
    """
    found: dict[str, set[str]] = {}
    for text in messages:
        with suppress(*MISREAD):
            message = json.loads(text)
            name = message["headers"]["task"]
            job_id, *rest = json.loads(base64.b64decode(message["body"]))[0]
            found.setdefault(job_id, set()).add(str(rest[0]) if name == UPSCALE else name.removeprefix("vdsr."))
    return found


class Queue:
    """Sends tasks by name; needs neither their code nor torch."""

    def __init__(self, settings: Settings, app: Celery | None = None) -> None:
        self._app = app or make_app(settings)

    def plan(self, job_id: str) -> None:
        """List more of a job."""
        self._send(PLAN, job_id)

    def upscale(self, job_id: str, chunk: int, *, again: bool = False, sent: float | None = None) -> None:
        """Do a chunk.

        Args:
            again: before all that wait for the first time.
            sent: Unix time since when it has waited; None for now.
        """
        self._send(UPSCALE, job_id, chunk, priority=0 if again else ORDINARY, sent=sent)

    def member(self, job_id: str, member: str) -> None:
        """Whatever the ledger says is due: a chunk number, "plan" or "finish"."""
        if member == "plan":
            self.plan(job_id)
        elif member == "finish":
            self._send(FINISH, job_id)
        elif member:
            self.upscale(job_id, int(member), again=True)

    def train(self, run_id: str) -> None:
        """Do what is left of a training run."""
        self._send(TRAIN, run_id, queue=TRAINING)

    def put_back(self, name: str, args: Iterable[Any], queue: str | None, layout: int) -> None:
        """Put a message behind all that wait, for a worker of a newer version."""
        self._send(name, *args, queue=queue or QUEUE, priority=ORDINARY, layout=layout)

    def _send(
        self,
        name: str,
        *args: Any,
        queue: str = QUEUE,
        priority: int = 0,
        layout: int = LAYOUT,
        sent: float | None = None,
    ) -> None:
        try:
            headers = {LAYOUT_HEADER: layout, SENT: round(sent or time.time(), 3), **tracing.carried()}
            self._app.send_task(name, args=args, queue=queue, priority=priority, headers=headers)
        except OperationalError as exc:
            raise BrokerUnreachable(f"cannot queue {name}: {exc}; the ledger has it, and a worker will") from exc
