"""How does a worker stop when it is asked to? It finishes the image in hand, gives the rest back, and ends then.

Celery's soft shutdown sleeps for the whole grace time, whatever its pool does meanwhile. Here the pool's processes are
told by SIGUSR2, and whoever of them works ends by itself once its chunk is given back: the worker waits for no longer
than that. What takes longer than the grace time is ended as before (worker.chunk, SystemExit).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from celery.apps import worker as celery_worker
from celery.signals import worker_process_init
from celery.worker.state import active_requests

from worker import tracing
from worker.errors import WorkerStopping

LOOK_S = 0.05

log = logging.getLogger(__name__)

_asked = threading.Event()


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked.is_set()


def check() -> None:
    """To be called where work may end.

    Raises:
        WorkerStopping: this process was asked to stop.
    """
    if _asked.is_set():
        raise WorkerStopping


def leave() -> NoReturn:
    """End this process, whose work is given back.

    Not by SystemExit: billiard would wait half a minute for Celery to take note of it, which waits for this end.
    """
    tracing.flush()
    logging.shutdown()
    os._exit(0)


class Worker(celery_worker.Worker):  # type: ignore[misc]  # celery has no types
    """Celery's worker, which tells its pool that it was asked to stop, and waits for the pool instead of the clock."""

    def wait_for_soft_shutdown(self) -> None:
        """Wait until the work in hand is finished or given back, or the grace time is over."""
        grace_s = self.app.conf.worker_soft_shutdown_timeout
        if grace_s <= 0:
            return
        working = _tell_pool()
        if working:
            log.warning("asked to stop: at most %g s for what is in hand", grace_s)
        deadline = time.monotonic() + grace_s
        while any(map(_runs, working)) and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """Celery's warm shutdown, by SIGTERM without REMAP_SIGTERM: it has no grace time, but nor does it go on."""
        _tell_pool()
        super().stop(in_sighandler, exitcode)


@worker_process_init.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _listen(**_: Any) -> None:
    signal.signal(signal.SIGUSR2, lambda *_: _asked.set())


def _tell_pool() -> list[int]:
    """Ask the processes that work to stop; which they are."""
    working = [request.worker_pid for request in tuple(active_requests) if request.worker_pid]
    for pid in working:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGUSR2)
    return working


def _runs(pid: int) -> bool:
    """Whether a child has not ended; that it has is left for billiard to find (WNOWAIT)."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # found already
        return False
