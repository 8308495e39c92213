"""How much memory do the pictures in hand take, and how much may they?

A picture's need is known from its header. Pictures are let in one after the other, each as soon as its need is free,
so that a worker holds many small ones or a single huge one, and never more than its budget.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

from vdsr.errors import ImageNeedsMemory, VdsrError
from vdsr.resize import scaled_size
from worker.images import Header
from worker.settings import LEAST_MEMORY_BUDGET, Settings

PROCESS_BYTES = 750 << 20
"""Of a worker with no picture in hand: Python, torch and the rest 400 MB, and the network: 60 MB for the widest strip
(`vdsr.upscale.STRIP`) by our compiled code, with room for torch's tiles where that is not built."""
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""What a container may use, in both generations of Linux' control groups."""
PILLOW_BYTES = 4
"""A pixel in Pillow, which holds RGB in four."""
BLED_BYTES = 4.5
"""For each byte of a picture with transparent parts, while their colour is made (`vdsr.alpha`): the new picture, and
half its size in float, some times over."""
FILE_SHARE = {"PNG": 0.8, "TIFF": 1.6, "BMP": 2.1, "JPEG": 0.5, "WEBP": 0.8, "AVIF": 0.5}
"""The written file in shares of its pixels, with the copies that its encoder makes; photographs need less."""

AVIF_DECODER_BYTES, AVIF_ENCODER_BYTES = 5, 42
"""A sample while libavif reads, and a pixel while libaom writes: measured 4.6 and 41.7 (RGB, 4 MP), not counting what
they read from."""


class TurnedAway(VdsrError):
    """The pipeline ended before this picture was let in."""


def budget_bytes(settings: Settings) -> int:
    """What pictures in hand may take: the setting, or half of the machine or container, less the process itself."""
    return _whole_budget(settings) - PROCESS_BYTES


def file_bytes(settings: Settings) -> int:
    """What files may take that are read and not decoded yet; and so the largest file."""
    return settings.max_file_bytes or _whole_budget(settings) // 4


def needed_bytes(header: Header, scale: float, image_format: str, *, reference: bool) -> int:
    """The most that a picture takes at a time on its way into a file of this format.

    Args:
        reference: whether it is compared with a picture of its final size.
    """
    height, width = scaled_size((header.height, header.width), scale)
    before, after = header.height * header.width, height * width
    source, result = before * header.pixel_bytes, after * header.pixel_bytes
    decoding = (AVIF_DECODER_BYTES if header.format == "AVIF" else 2) * source + PILLOW_BYTES * before
    bleeding = int(BLED_BYTES * source) if header.alpha else 0
    # Beside the picture: the reference while it is decoded, and luminance of it, of the result and of bicubic
    scoring = source + 3 * result + (PILLOW_BYTES + 3) * after if reference else 0
    copy = 0 if image_format == "PNG" else PILLOW_BYTES * after
    codec = AVIF_ENCODER_BYTES * after if image_format == "AVIF" else 0
    encoding = result + copy + codec + int(FILE_SHARE[image_format] * result)
    return max(decoding, source + result + bleeding, scoring, encoding)


class Admission:
    """Lets pictures in, in the order in which they were drawn, while their memory fits; for several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Bytes."""
        self.changed = threading.Condition()
        self.waiting: deque[Turn] = deque()
        self.used = 0
        self.closed = False

    def draw(self) -> Turn:
        """A place at the end of the queue."""
        turn = Turn(self)
        with self.changed:
            self.waiting.append(turn)
        return turn

    def close(self) -> None:
        """Turn away whoever waits or comes."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Turn:
    """One picture's place."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._taken = admission, 0

    def enter(self, need: int) -> None:
        """Wait until all before it are in or gone, and so many bytes are free; take them.

        Raises:
            ImageNeedsMemory: they would never be free.
            TurnedAway: nobody waits for this picture any more.
        """
        queue = self._admission
        if need > queue.limit:
            raise ImageNeedsMemory(need + PROCESS_BYTES, queue.limit + PROCESS_BYTES)
        with queue.changed:
            queue.changed.wait_for(
                lambda: queue.closed or (queue.waiting[0] is self and queue.used + need <= queue.limit)
            )
            if queue.closed:
                raise TurnedAway
            queue.waiting.popleft()
            queue.used += need
            self._taken = need
            queue.changed.notify_all()

    def leave(self) -> None:
        """Give everything back; may be called at any time, and again."""
        queue = self._admission
        with queue.changed:
            if self in queue.waiting:
                queue.waiting.remove(self)
            queue.used -= self._taken
            self._taken = 0
            queue.changed.notify_all()


def _whole_budget(settings: Settings) -> int:
    return settings.memory_budget or max(LEAST_MEMORY_BUDGET, _machine_bytes() // 2)


def _machine_bytes() -> int:
    """Of memory, as far as this process may use it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)
