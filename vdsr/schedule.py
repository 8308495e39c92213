"""Which tiles of an image are computed together, and what if that is too much for the memory?

Nothing here knows a device: an executor (`vdsr.torch_engine`, `vdsr.cuda`) computes the stacks that are planned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vdsr.tiling import Span, equal_spans

if TYPE_CHECKING:
    from vdsr.engine import Plane

SMALLEST = 32
"""Pixels a side of the smallest tile that is tried: with its halo it already computes five times what it keeps."""


class Part:
    """Some rows of a residual that tiles are filling."""

    def __init__(self, height: int, width: int) -> None:
        self.plane: Plane = np.empty((height, width), np.float32)
        self.left = self.plane.size
        """Pixels still to come."""


@dataclass(frozen=True, eq=False)
class Tile:
    """What the network is to see, and where the middle of what it gives belongs."""

    source: Plane
    """(h, w) with the halo, or up to the image's border."""
    rows: slice
    columns: slice
    """What of it is kept."""
    part: Part
    top: int
    left: int
    """Where in `part` that begins."""

    def deliver(self, residual: Plane) -> None:
        """Put the kept pixels of (h, w) in their place."""
        kept = residual[self.rows, self.columns]
        height, width = kept.shape
        self.part.plane[self.top : self.top + height, self.left : self.left + width] = kept
        self.part.left -= kept.size


@dataclass
class Budget:
    """How much is computed at a time; shrinks when the memory turns out too small, and stays so."""

    tile: int
    """Pixels a side that a tile contributes."""
    pixels: int
    """Most that the tiles of a stack read together; a single tile may read more."""
    halo: int
    step: int = 1
    """As `vdsr.tiling.equal_spans`."""

    def spans(self, length: int) -> list[Span]:
        """An axis of an image in tiles."""
        return equal_spans(0, length, length=length, tile=self.tile, halo=self.halo, step=self.step)

    def tiles(self, source: Plane, rows: Span, part: Part, top: int = 0) -> Iterator[Tile]:
        """Some rows of an image in tiles.

        Args:
            source: (rows.read_stop - rows.read_start, W) of the image.
            part: where the residual of rows.start..rows.stop goes, from row `top` on.
        """
        for columns in self.spans(source.shape[1]):
            read = source[:, columns.read_start : columns.read_stop]
            yield Tile(read, rows.kept, columns.kept, part, top, columns.start)

    def stacks(self, tiles: Sequence[Tile]) -> list[list[Tile]]:
        """Those tiles in stacks of equal shape within the budget, too large ones cut up."""
        by_shape: dict[tuple[int, ...], list[Tile]] = {}
        for tile in tiles:
            for piece in self._pieces(tile):
                by_shape.setdefault(piece.source.shape, []).append(piece)
        stacks = []
        for (height, width), equal in by_shape.items():
            most = max(1, self.pixels // (height * width))
            size = math.ceil(len(equal) / math.ceil(len(equal) / most))  # stacks of even size have fewer shapes
            stacks += [equal[first : first + size] for first in range(0, len(equal), size)]
        return stacks

    def shrink(self, stack: Sequence[Tile]) -> bool:
        """Plan less at a time, since this stack was too much: half as many tiles, then smaller ones.

        Returns:
            False where nothing smaller is left to try.
        """
        height, width = stack[0].source.shape
        if len(stack) == 1:
            longest = max(height, width)
            if longest <= SMALLEST + 2 * self.halo:
                return False
            self.tile = max(SMALLEST, min(self.tile, longest - 2 * self.halo) // 2)
        self.pixels = min(self.pixels, len(stack) * height * width // 2)
        return True

    def _pieces(self, tile: Tile) -> Iterator[Tile]:
        """The tile itself, or smaller ones for what it keeps if the budget shrank since it was planned."""
        height, width = tile.source.shape
        if max(height, width) <= self.tile + 2 * self.halo:
            yield tile
            return
        for rows in self._within(tile.rows, height):
            for columns in self._within(tile.columns, width):
                yield Tile(
                    tile.source[rows.read_start : rows.read_stop, columns.read_start : columns.read_stop],
                    rows.kept,
                    columns.kept,
                    tile.part,
                    tile.top + rows.start - tile.rows.start,
                    tile.left + columns.start - tile.columns.start,
                )

    def _within(self, kept: slice, length: int) -> list[Span]:
        return equal_spans(kept.start, kept.stop, length=length, tile=self.tile, halo=self.halo, step=self.step)
