"""Which tiles of an image are computed together, and what if that is too much for the memory?

Nothing here knows a device: an executor (`vdsr.torch_engine`, `vdsr.cuda`) computes the stacks that are planned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from vdsr.tiling import Span, equal_spans

if TYPE_CHECKING:
    from torch import Tensor

    from vdsr.engine import Plane

Array = TypeVar("Array", "Plane", "Tensor")
"""(H, W) float32 in the host's memory, or in the device's."""

SMALLEST = 32
"""Pixels a side of the smallest tile that is tried: with its halo it already computes five times what it keeps."""


class Part(Generic[Array]):
    """Some of a residual that tiles are filling."""

    def __init__(self, plane: Array) -> None:
        """
        Args:
            plane: (h, w), where it is to lie.
        """
        self.plane: Array = plane
        self.left = math.prod(plane.shape)
        """Pixels still to come."""


@dataclass(frozen=True, eq=False)
class Tile(Generic[Array]):
    """What the network is to see, and where the middle of what it gives belongs."""

    source: Array
    """(h, w) with the halo, or up to the image's border."""
    rows: slice
    columns: slice
    """What of it is kept."""
    part: Part[Array]
    top: int
    left: int
    """Where in `part` that begins."""

    def deliver(self, residual: Array) -> None:
        """Put the kept pixels of (h, w) in their place."""
        kept = residual[self.rows, self.columns]
        height, width = kept.shape
        self.part.plane[self.top : self.top + height, self.left : self.left + width] = kept
        self.part.left -= height * width


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

    def spans(self, length: int, start: int = 0, stop: int | None = None) -> list[Span]:
        """An axis of an image, or start..stop of it, in tiles."""
        stop = length if stop is None else stop
        return equal_spans(start, stop, length=length, tile=self.tile, halo=self.halo, step=self.step)

    def tiles(self, source: Array, rows: Span, part: Part[Array], top: int = 0) -> Iterator[Tile[Array]]:
        """Some rows of an image in tiles.

        Args:
            source: (rows.read_stop - rows.read_start, W) of the image.
            part: where the residual of rows.start..rows.stop goes, from row `top` on.
        """
        for columns in self.spans(source.shape[1]):
            read = source[:, columns.read_start : columns.read_stop]
            yield Tile(read, rows.kept, columns.kept, part, top, columns.start)

    def stacks(self, tiles: Sequence[Tile[Array]]) -> list[list[Tile[Array]]]:
        """Those tiles in stacks of equal shape within the budget, too large ones cut up."""
        by_shape: dict[tuple[int, ...], list[Tile[Array]]] = {}
        for tile in tiles:
            for piece in self._pieces(tile):
                by_shape.setdefault(piece.source.shape, []).append(piece)
        stacks = []
        for (height, width), equal in by_shape.items():
            most = max(1, self.pixels // (height * width))
            size = math.ceil(len(equal) / math.ceil(len(equal) / most))  # stacks of even size have fewer shapes
            stacks += [equal[first : first + size] for first in range(0, len(equal), size)]
        return stacks

    def fits(self, count: int, height: int, width: int) -> bool:
        """Whether so many tiles that read (height, width) may be computed together."""
        small = max(height, width) <= self.tile + 2 * self.halo
        return small and (count == 1 or count * height * width <= self.pixels)

    def shrink(self, count: int, height: int, width: int) -> bool:
        """Plan less at a time, since so many tiles were too much: half as many, then smaller ones; they fit no more.

        Returns:
            False where nothing smaller is left to try.
        """
        if count == 1:
            longest = max(height, width)
            if longest <= SMALLEST + 2 * self.halo:
                return False
            self.tile = max(SMALLEST, min(self.tile, (longest - 2 * self.halo) // 2))
        self.pixels = min(self.pixels, count * height * width // 2)
        return True

    def _pieces(self, tile: Tile[Array]) -> Iterator[Tile[Array]]:
        """The tile itself, or smaller ones for what it keeps if the budget shrank since it was planned."""
        height, width = tile.source.shape
        if self.fits(1, height, width):
            yield tile
            return
        for rows in self.spans(height, tile.rows.start, tile.rows.stop):
            for columns in self.spans(width, tile.columns.start, tile.columns.stop):
                yield Tile(
                    tile.source[rows.read_start : rows.read_stop, columns.read_start : columns.read_stop],
                    rows.kept,
                    columns.kept,
                    tile.part,
                    tile.top + rows.start - tile.rows.start,
                    tile.left + columns.start - tile.columns.start,
                )
