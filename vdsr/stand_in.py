"""What stands in for the network where a fleet is measured, and not pictures? An engine that only waits.

It is chosen as a job's model, "timed:0.01": 0.01 seconds for each image. Nobody can take its outputs for others: they
bear broad stripes, and every record of them has this model's name and digest, which no weights have.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vdsr.checkpoint import Identity

if TYPE_CHECKING:
    from vdsr.engine import Plane
    from vdsr.upscale import Upscaler

LONGEST_S = 3600
STRIPE = 4
"""Pixels across a stripe."""
STRENGTH = 0.3
"""Of the stripes, in luminance from 0 to 1."""


def stand_in_seconds(name: str | None) -> float | None:
    """How long a stand-in of this name takes for an image; None if the name is no stand-in's."""
    found = re.fullmatch(r"timed:(\d+(?:\.\d+)?)", name or "")
    seconds = float(found[1]) if found else math.nan
    return seconds if seconds <= LONGEST_S else None


def identity(name: str) -> Identity:
    """What stands for its weights in every record."""
    return Identity(name, hashlib.sha256(f"vdsr stand-in {name}".encode()).hexdigest())


def make_stand_in(name: str) -> Upscaler:
    """An upscaler that does all but the network."""
    from vdsr.upscale import Upscaler

    seconds = stand_in_seconds(name)
    if seconds is None:
        raise ValueError(f"{name!r} is no stand-in; write timed:SECONDS, with at most {LONGEST_S} s")
    upscaler = Upscaler(device="cpu", engine="torch")
    upscaler.engine, upscaler.identity = Timed(seconds), identity(name)
    return upscaler


class Timed:
    """An engine that takes its time and draws stripes."""

    exact = True
    halo = 0
    redone = 0
    relieved = 0
    tile = 0

    def __init__(self, seconds: float) -> None:
        self.name, self._seconds = f"stand-in, {seconds:g} s an image", seconds

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Striped:
        """As `vdsr.engine.Engine`: an image's time passes before its first row."""
        on_tile()
        time.sleep(self._seconds)
        return Striped(on_tile)


class Striped:
    """As `vdsr.engine.Stream`."""

    def __init__(self, on_tile: Callable[[], None]) -> None:
        self._on_tile, self._row = on_tile, 0

    def push(self, rows: Plane) -> Plane:
        """(k, W) to (k, W): diagonal stripes, whatever is given."""
        import numpy as np  # here: clients load this module for its names

        self._on_tile()
        height, width = rows.shape
        y, x = np.ogrid[self._row : self._row + height, :width]
        self._row += height
        dark = ((x + y) // STRIPE % 2).astype(np.float32)
        return np.float32(STRENGTH) * (1 - 2 * dark)
