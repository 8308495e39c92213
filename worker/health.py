"""Is this worker alive, and ready? It leaves word in a folder of its own, and a probe reads it (`vdsr health`).

| file      | written by                                                       | says                           |
|-----------|------------------------------------------------------------------|--------------------------------|
| queues    | Celery's parent process, when it starts                          | whose messages it takes        |
| alive     | the parent, whenever Redis answers to its asking for work;       | by its time of change, that    |
|           | a child, while it gets on with a task                            | work can be had or is done     |
| ready-PID | a child, once its model is loaded                                | which model                    |

The parent writes at answers to BRPOP, which is how work is taken: a worker that is connected and no longer asks for
work (celery#8030) falls silent here. Nothing heavy is imported: a probe runs every few seconds.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from vdsr.errors import VdsrError

LIVE_S = 300.0
"""Word of a live worker is no older than this. A Redis that is away for two minutes is waited for (worker.chunk)."""
WRITE_S = 1.0
"""Between two touches of a file: an idle worker asks once a second, a busy one more often."""

log = logging.getLogger(__name__)


class Unhealthy(VdsrError):
    """The worker is not alive, or not ready."""


class Health:
    """The word of one worker."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the worker's own; made when it is first needed.
        """
        self.folder = folder
        self._written = float("-inf")

    def begin(self, queues: list[str]) -> None:
        """A worker starts: whatever lies there is of an earlier one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / "alive", *self.folder.glob("ready-*")):
            path.unlink(missing_ok=True)
        (self.folder / "queues").write_text("\n".join(queues))

    def queues(self) -> list[str]:
        """What `begin` was told."""
        return (self.folder / "queues").read_text().splitlines()

    def beat(self) -> None:
        """All is well just now. A disk that cannot be written is logged, and the silence tells of it."""
        if time.monotonic() - self._written < WRITE_S:
            return
        self._written = time.monotonic()
        try:
            (self.folder / "alive").touch()
        except OSError as exc:
            log.warning("cannot say that this worker is alive: %s", exc)

    def loaded(self, model: str) -> None:
        """This process can do work."""
        (self.folder / f"ready-{os.getpid()}").write_text(model)

    def check_live(self, within_s: float = LIVE_S) -> str:
        """When it was last heard of, in words.

        Raises:
            Unhealthy: too long ago, or never.
        """
        try:
            silent_s = max(0.0, time.time() - (self.folder / "alive").stat().st_mtime)
        except FileNotFoundError as exc:
            raise Unhealthy(
                f"no word of a worker in {self.folder}: it has not yet had an answer of Redis since it was started, "
                "or has another VDSR_HEALTH_DIR"
            ) from exc
        if silent_s > within_s:
            raise Unhealthy(
                f"no word for {silent_s:,.0f} s, over the limit of {within_s:,.0f}: the worker hangs, takes no work, "
                "or cannot reach Redis; its log tells which"
            )
        return f"alive {silent_s:.0f} s ago"

    def check_ready(self, within_s: float = LIVE_S) -> str:
        """What it has loaded, in words.

        Raises:
            Unhealthy: nothing yet, or it is not alive.
        """
        alive = self.check_live(within_s)
        for path in sorted(self.folder.glob("ready-*")):
            pid = int(path.name.removeprefix("ready-"))
            if _runs(pid):
                return f"{alive}, {path.read_text()} loaded by process {pid}"
        raise Unhealthy(f"{alive}, and no process of it has its model loaded yet")


_mine: Health | None = None  # of this process, where it is a worker
_progressed = 0.0


def become(health: Health | None) -> None:
    """This process is a worker that is to leave word there; None: nowhere."""
    global _mine  # noqa: PLW0603  # the transport and the leases are made where nobody could hand it to them
    _mine = health
    progress()


def beat() -> None:
    """Leave word, if this process is to."""
    if _mine is not None:
        _mine.beat()


def progress() -> None:
    """A step of the work in hand is done: a tile, a file, a page of a listing, a step of a training."""
    global _progressed  # noqa: PLW0603  # as above
    _progressed = time.monotonic()


def since_progress_s() -> float:
    """For how long the work in hand has been at the same step."""
    return time.monotonic() - _progressed


def _runs(pid: int) -> bool:
    with suppress(ProcessLookupError):
        try:
            os.kill(pid, 0)
        except PermissionError:  # another user's, so it is there
            return True
        return True
    return False
