"""How does our compiled code compute an image? Patch by patch through all layers, nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vdsr.engine import Plane, Stream, blame, is_finite
from vdsr.native import CHANNELS, Network, amx, int16, library
from vdsr.native.trial import can_be_trusted

if TYPE_CHECKING:
    from vdsr.model import VDSR

PIECE_PIXELS = 1 << 17
"""Computed at a time: a fraction of a second on the slowest machine."""


def native_engine(model: VDSR, precision: str) -> NativeEngine | None:
    """The fastest of our compiled code that gives the precision; None where there is none.

    With AMX that is bf16, else 16-bit integers, unless fp32 is asked for or their trial fails.
    """
    if model.config.channels != CHANNELS or (vectors := library()) is None:
        return None
    exact = Network(vectors, model)
    if precision == "fp32":
        return NativeEngine(exact)
    if (faster := amx.library() or (int16.library() if precision == "auto" else None)) is None:
        return NativeEngine(exact) if precision == "auto" else None
    network = Network(faster, model)
    return NativeEngine(network if can_be_trusted(network, exact) else exact)


class NativeEngine:
    """A network of vdsr/native/inference.cpp, int16.cpp or amx.cpp, streamed by stream.h."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.name = f"native {network.library.variant} {network.library.precision}"
        self.exact = network.library.precision == "fp32"
        self.redone = self.relieved = self.tile = 0  # rows stream through it
        # A pixel sees one pixel a layer, but the rounding of its tile sees the neighbouring tile.
        self.halo = network.tile * network.depth

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """As `Engine`."""
        return _Checked(self.network.stream(height, width), on_tile)

    def residuals(self, planes: NDArray[np.float32], on_tile: Callable[[], None]) -> NDArray[np.float32]:
        """As `Batching`: threads share the images, and not the parts of each, of which small ones have too few."""
        step = max(torch.get_num_threads(), PIECE_PIXELS // planes[0].size)
        parts = []
        for start in range(0, len(planes), step):
            on_tile()
            parts.append(self.network.residuals(planes[start : start + step]))
            if not is_finite(parts[-1]):
                raise blame(sound=is_finite(planes))
        return np.concatenate(parts)


class _Checked:
    """A stream that calls `on_tile` often enough: a push of many rows is cut up; and gives finite numbers only."""

    def __init__(self, stream: Stream, on_tile: Callable[[], None]) -> None:
        self.stream, self.on_tile = stream, on_tile
        self._sound = True

    def push(self, rows: Plane) -> Plane:
        """As `Stream`."""
        step = max(1, PIECE_PIXELS // rows.shape[1])
        parts = []
        for start in range(0, len(rows), step):
            self.on_tile()
            part = rows[start : start + step]
            self._sound = self._sound and is_finite(part)
            parts.append(self.stream.push(part))
            if not is_finite(parts[-1]):
                raise blame(sound=self._sound)
        return np.concatenate(parts)
