"""What is the same for every message that a worker takes? What is newer than the worker goes back, and a stop ends it.

While workers are replaced one by one, an old one may meet what a newer client has queued. It must neither fail it nor
drop it, nor have the two play ball: the message goes behind all that wait, the worker says so once, and then takes
nothing for a moment, which grows as long as it meets nothing else. Nothing of the job is changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worker import stopping
from worker.app import LAYOUT, LAYOUT_HEADER, Queue
from worker.errors import NewerFormat, TransientError

PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""After the first message in a row that is a newer worker's, the second, ...; the last one from then on."""
LOOK_S = 0.1

log = logging.getLogger(__name__)


class Newer:
    """What one worker process has met that was written for newer ones."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._row = 0

    def met(self, exc: NewerFormat) -> float:
        """Say so, once for each job; the seconds for which to take nothing."""
        if exc.what not in self._told:
            self._told.add(exc.what)
            log.warning("%s is left to newer workers: %s", exc.what, exc)
        pause_s = PAUSES_S[min(self._row, len(PAUSES_S) - 1)]
        self._row += 1
        return pause_s

    def none(self) -> None:
        """The last message was ours."""
        self._row = 0


_newer = Newer()  # of this process


@contextmanager
def taking(request: Any, queue: Queue) -> Iterator[None]:
    """What a task does with its message.

    Args:
        request: Celery's, of the task.
    """
    try:
        _check_layout(request)
        yield
    except NewerFormat as exc:
        pause_s = _newer.met(exc)
        try:
            queue.put_back(
                request.task, request.args, (request.delivery_info or {}).get("routing_key"), _layout(request)
            )
        except TransientError as away:  # the ledger knows of it, and a sweeper queues it again
            log.warning("%s", away)
        deadline = time.monotonic() + pause_s
        while time.monotonic() < deadline and not stopping.asked():
            time.sleep(LOOK_S)
    else:
        _newer.none()
    if stopping.asked():  # in the last image of a chunk: Celery would sleep the whole grace time
        stopping.leave()


def _layout(request: Any) -> int:
    return getattr(request, LAYOUT_HEADER, None) or 1  # messages of the first version name none


def _check_layout(request: Any) -> None:
    if _layout(request) > LAYOUT:
        raise NewerFormat(f"a message {request.task} on the queue", _layout(request), LAYOUT)
