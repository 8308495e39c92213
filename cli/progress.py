"""How does a job look while one waits for it? A bar on a terminal, JSON lines where asked for, else nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cli.output import BAR, absence_line, duration, print_event, say

if TYPE_CHECKING:
    from worker.ledger import Record

Draw = Callable[[Callable[[int], str]], None]
"""Redraws a line that is made for a width in characters."""

EVENT_S = 1.0
"""Least time between two events of progress."""
WINDOW_S = 60.0
"""Speed is that of so long: workers come and go."""
SETTLED_S = 5.0
"""Until a window is so long, the speed is that of the whole job."""
ASK_S = 5.0
"""Between two questions for workers."""
UNSEEN_S = 30.0
"""From then on their absence is told."""


class Progress:
    """Shows each record of a job that is looked at."""

    def __init__(self, draw: Draw, *, events: bool = False, unseen_s: Callable[[], float] = lambda: 0.0) -> None:
        """
        Args:
            draw: of a terminal.
            events: print JSON lines on stdout.
            unseen_s: seconds since a worker was last seen.
        """
        self.draw, self.events, self.unseen_s = draw, events, unseen_s
        self._seen: deque[tuple[float, float]] = deque()  # Redis' time, output megapixels made until then
        self._asked = self._told = -ASK_S  # monotonic times
        self._absent = 0.0
        self._last: Any = None

    def look(self, record: Record) -> None:
        """Show how the job stands now."""
        from worker.summary import summarise

        summary = self.paced(summarise(record), record.now)
        if not record.state.ended:
            self._look_for_workers(summary)
        self.draw(lambda width: live_line(summary, width, unseen_s=self._absent))
        if self.events:
            self._tell(summary)

    def paced(self, summary: dict[str, Any], now: float) -> dict[str, Any]:
        """The summary with speed and time left by the last minute."""
        self._seen.append((now, summary["megapixels"]))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        began, before = self._seen[0]
        made = summary["megapixels"] - before
        if now - began < SETTLED_S or made <= 0:
            return summary
        speed = made / (now - began)
        left = summary["megapixels_left"]
        return {
            **summary,
            "megapixels_per_second": round(speed, 3),
            "eta_s": None if left is None else round(left / speed, 1),
        }

    def _look_for_workers(self, summary: dict[str, Any]) -> None:
        if time.monotonic() - self._asked < ASK_S:
            return
        self._asked = time.monotonic()
        unseen_s = self.unseen_s()
        if unseen_s > UNSEEN_S and not self._absent:
            say(absence_line(summary, unseen_s))
        self._absent = unseen_s if unseen_s > UNSEEN_S else 0.0

    def _tell(self, summary: dict[str, Any]) -> None:
        """An event, if something has changed, and not too often."""
        what = summary["state"], summary["images"]
        if what == self._last or time.monotonic() - self._told < EVENT_S:
            return
        self._last, self._told = what, time.monotonic()
        print_event("progress", summary)


def live_line(summary: dict[str, Any], width: int, *, unseen_s: float = 0.0) -> str:
    """Bar, images, failures, time left, speed and gain, as far as the width allows; what is told last goes first."""
    absent = f"no worker seen{'' if unseen_s == float('inf') else f' for {duration(unseen_s)}'}" if unseen_s else ""
    images, speed, gain = summary["images"], summary["megapixels_per_second"], summary["psnr"]["gain"]
    if not images["total"]:
        return absent or "waiting for a worker to list the images"
    ended = images["done"] + images["failed"] + images["skipped"]
    parts = [
        f"{ended:,} of {images['total']:,}{'' if summary['listed'] else ' listed so far'} images",
        absent,
        f"{images['failed']:,} failed" if images["failed"] else "",
        f"{duration(summary['eta_s'])} left" if summary["eta_s"] is not None else "",
        f"{speed:.2f} MP/s" if speed else "",
        f"{gain:+.2f} dB over bicubic" if gain is not None else "",
        f"{images['skipped']:,} skipped" if images["skipped"] else "",
    ]
    parts = [part for part in parts if part]
    while len(", ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    text = ", ".join(parts)
    room = min(BAR, width - len(text) - 3)
    if room < BAR // 3:
        return text
    filled = room * ended // images["total"]
    return f"[{'#' * filled}{'-' * (room - filled)}] {text}"
