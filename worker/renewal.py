"""How does an owner keep its lease while it works? By a thread of its own: an image or a step may outlast a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.errors import JobStopped, LeaseLost


class Renewal:
    """Calls `beat` every so often, and remembers what ended that."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        """
        Args:
            beat: renews; raises JobStopped or LeaseLost where there is nothing to renew any more.
        """
        self._beat, self._every_s = beat, every_s
        self._ended = threading.Event()
        self._verdict: JobStopped | LeaseLost | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew for as long as the block runs."""
        thread = threading.Thread(target=self._run, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def check(self) -> None:
        """Raise what the thread has learnt: JobStopped or LeaseLost."""
        if self._verdict is not None:
            raise type(self._verdict)(*self._verdict.args)  # anew: a traceback holds what its frames held

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._beat()
            except (JobStopped, LeaseLost) as exc:
                self._verdict = exc
                return
