"""How long is a storage waited for that does not answer? Until it does, or for PATIENCE_S; then it is an outcome.

botocore repeats a request for 1 second after a 500 or a reset, and for 15 to 30 after a 503; after 8 to 16 failed
objects its quota is used up, and nothing is repeated any more (measured, botocore 1.44.5). An outage or a throttled
prefix lasts longer, and would fail every image that it meets: 387 of 400 in 40 seconds of resets. So what a
StorageUnavailable ended is tried again here, with pauses that double and are drawn at random, lest a fleet comes back
all at once.

An object that fails again and again while others work is a case of its own: it is given up after ALONE attempts in a
row and ALONE_S.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from worker.errors import JobStopped, StorageUnavailable

PATIENCE_S = 120.0
"""Bounds what an outage costs: while nothing works, a worker fails no more than its reading threads' images in this
time."""
ALONE, ALONE_S = 3, 20.0
"""Attempts at an object while others are read or written, and the least time that they take: with a third of all
requests failing, three attempts in a row failed 11 of 2,000 images."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
LOOK_S = 0.5

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Repeats reads from one storage, or writes to one; threads share it and learn from each other's success."""

    def __init__(
        self, check: Callable[[], None] = lambda: None, patience_s: float = PATIENCE_S, alone_s: float = ALONE_S
    ) -> None:
        """
        Args:
            check: called twice a second while waiting; JobStopped ends all waiting, and other errors rise.
        """
        self._check, self._patience_s, self._alone_s = check, patience_s, alone_s
        self._successes = 0
        self._closed = threading.Event()

    def __call__(self, use: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `use` returns, as soon as the storage answers.

        Raises:
            StorageUnavailable: it does not; the last one.
        """
        began, attempt = time.monotonic(), 0
        alone, alone_since, successes = 0, began, self._successes
        while True:
            try:
                result = use(*args, **kwargs)
            except StorageUnavailable:
                attempt, now = attempt + 1, time.monotonic()
                # Since the attempt before, not since the first: requests that were under way when an outage began
                # still succeed, and say nothing of its rest.
                alone, successes = (alone + 1 if self._successes > successes else 0), self._successes
                if alone <= 1:
                    alone_since = now
                given_up = alone >= ALONE and now - alone_since > self._alone_s
                if given_up or now - began > self._patience_s or not self._paused(attempt):
                    raise
            else:
                self._successes += 1  # two threads may make it one: that it grows is all that counts
                return result

    def close(self) -> None:
        """Wait no longer: what fails now, fails."""
        self._closed.set()

    def _paused(self, attempt: int) -> bool:
        """Whether the pause before the next attempt came to its end."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        until = time.monotonic() + random.uniform(longest / 2, longest)  # noqa: S311 - no secret hangs on it
        while (rest := until - time.monotonic()) > 0:
            try:
                self._check()
            except JobStopped:  # what is being written gets its outcome all the same
                self.close()
            if self._closed.wait(min(rest, LOOK_S)):
                return False
        return not self._closed.is_set()
