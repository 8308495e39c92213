"""How is a picture made on the card, from its bytes to its bytes? Area by area, three of them at a time.

An area is a row of tiles, or as many neighbours of one as may be computed together. What it is made of travels there as
it was decoded, at x2 in 8-bit RGB a fifth of luminance in float; becomes luminance at its new size; goes through the
network; gets its colour, and travels back while the next area computes. Small pictures of one shape share stacks.

An area is written when all of it has come back, and is made again, in smaller ones, if the memory did not suffice for
it at any stage: no pixel is delivered that was not computed whole.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from vdsr.device import OutOfMemory
from vdsr.samples import Axis, carried, packed, unpacked
from vdsr.schedule import Part, Tile
from vdsr.tiling import Span
from vdsr.torch_engine import TorchEngine, is_out_of_memory

if TYPE_CHECKING:
    from vdsr.resize import Bicubic

Done = TypeVar("Done")

RETURNING = 2
"""Turns after which an area's bytes are waited for: by then the card has long begun on other stacks."""


@dataclass(frozen=True)
class Area:
    """Some tiles of a picture that lie side by side."""

    picture: int
    rows: Span
    columns: tuple[Span, ...]

    @property
    def reads(self) -> tuple[int, int, int]:
        """Tiles, and the height and width that each of them reads."""
        first = self.columns[0]
        return len(self.columns), self.rows.read_stop - self.rows.read_start, first.read_stop - first.read_start

    @property
    def pixels(self) -> int:
        """That its tiles read together."""
        count, height, width = self.reads
        return count * height * width


@dataclass(frozen=True, eq=False)
class Begun:
    """An area on the device."""

    area: Area
    planes: Tensor
    """(C, h, w), luminance and chroma of the source."""
    top: int
    left: int
    """Where in the source they begin."""
    y: Tensor
    """(h, w), luminance at its new size, all that the area reads."""
    part: Part[Tensor]
    """The residual of what it contributes."""

    def tiles(self) -> Iterator[Tile[Tensor]]:
        """For the network."""
        left, start = self.area.columns[0].read_start, self.area.columns[0].start
        for span in self.area.columns:
            read = self.y[:, span.read_start - left : span.read_stop - left]
            yield Tile(read, self.area.rows.kept, span.kept, self.part, 0, span.start - start)


class Pictures:
    """Pictures of one shape on their way through the card."""

    def __init__(
        self,
        engine: TorchEngine,
        samples: Sequence[NDArray[Any]],
        plan: Bicubic,
        outs: Sequence[NDArray[Any]],
        on_tile: Callable[[], None],
    ) -> None:
        """As `vdsr.engine.Picturing.pictures`."""
        self._engine, self._plan, self._on_tile = engine, plan, on_tile
        self._samples, self._outs = [carried(each) for each in samples], [carried(out) for out in outs]
        self._axes: tuple[Axis, Axis] | None = None
        height, width = plan.size
        self._waiting = deque(
            area for number in range(len(outs)) for area in self._cut(number, (0, height), (0, width))
        )
        self._begun: list[Begun] = []
        self._returning: deque[list[tuple[Area, Callable[[], NDArray[Any]]]]] = deque()
        self._short = False
        """Whether memory ran out, and nothing has been given back since."""

    def make(self) -> None:
        """All of them."""
        try:
            while self._waiting or self._begun:
                if self._short:  # here, where nothing holds tensors any more that have been given up
                    self._engine.executor.relieve()
                    self._short = False
                self._compute(self._next())
                self._returning.append(self._colored())
                self._write(RETURNING)
            self._write(0)
        except BaseException:
            self._engine.abandon([begun.part for begun in self._begun])
            raise

    def _next(self) -> list[Begun]:
        """As many areas as may be computed together."""
        group: list[Begun] = []
        pixels = 0
        while self._waiting:
            area = self._waiting[0]
            if not self._engine.budget.fits(*area.reads):  # it shrank since
                self._waiting.popleft()
                self._again([area])
                continue
            pixels += area.pixels
            if group and pixels > self._engine.budget.pixels:
                break
            begun = self._tried(self._waiting.popleft(), partial(self._enlarged, area))
            if begun is None:
                break
            group.append(begun)
            self._begun.append(begun)
        return group

    def _compute(self, group: Sequence[Begun]) -> None:
        """Begin on their tiles; without any, wait for all that is under way."""
        try:
            if group:
                self._engine.compute([tile for begun in group for tile in begun.tiles()], self._on_tile)
            else:
                self._engine.finish()
        except OutOfMemory:
            areas = [begun.area for begun in self._begun]
            if all(self._engine.budget.fits(*area.reads) for area in areas):
                raise
            # Not even small tiles fit beside what these areas hold: all of them again, in smaller ones.
            self._engine.abandon([begun.part for begun in self._begun])
            self._begun.clear()
            self._short = True
            self._again(areas)

    def _colored(self) -> list[tuple[Area, Callable[[], NDArray[Any]]]]:
        """Send back those areas that are complete."""
        complete = [begun for begun in self._begun if not begun.part.left]
        self._begun = [begun for begun in self._begun if begun.part.left]
        results = [(begun.area, self._tried(begun.area, partial(self._finished, begun))) for begun in complete]
        return [(area, result) for area, result in results if result is not None]

    def _write(self, turns: int) -> None:
        """What came back, but not of the last turns."""
        while len(self._returning) > turns:
            for area, result in self._returning.popleft():
                rows = slice(area.rows.start, area.rows.stop)
                self._outs[area.picture][rows, area.columns[0].start : area.columns[-1].stop] = result()

    def _enlarged(self, area: Area) -> Begun:
        """Its samples on the device, and luminance at its new size."""
        rows, columns = area.rows, (area.columns[0], area.columns[-1])
        with self._engine.executor.working():
            down, across = self._both_axes()
            top, bottom = down.sources(rows.read_start, rows.read_stop)
            left, right = across.sources(columns[0].read_start, columns[1].read_stop)
            planes = unpacked(self._engine.executor.upload(self._samples[area.picture][top:bottom, left:right]))
            luminance = down.applied(planes[:1], rows.read_start, rows.read_stop, origin=top, across=False)
            y = across.applied(luminance, columns[0].read_start, columns[1].read_stop, origin=left, across=True)[0]
            kept = (rows.stop - rows.start, columns[1].stop - columns[0].start)
            return Begun(area, planes, top, left, y, Part(torch.empty(kept, device=y.device)))

    def _finished(self, begun: Begun) -> Callable[[], NDArray[Any]]:
        """Add the residual and the colour, and send the bytes on their way."""
        area, rows, start, stop = begun.area, begun.area.rows, begun.area.columns[0].start, begun.area.columns[-1].stop
        with self._engine.executor.working():
            down, across = self._both_axes()
            chroma = down.applied(begun.planes[1:], rows.start, rows.stop, origin=begun.top, across=False)
            chroma = across.applied(chroma, start, stop, origin=begun.left, across=True)
            first = start - area.columns[0].read_start
            y = begun.part.plane.add_(begun.y[rows.kept, first : first + stop - start])
            dtype = torch.uint8 if self._samples[0].dtype.itemsize == 1 else torch.int16
            return self._engine.executor.download(packed(y, chroma, dtype))

    def _both_axes(self) -> tuple[Axis, Axis]:
        if self._axes is None:
            upload = self._engine.executor.upload
            self._axes = Axis(self._plan.down, upload), Axis(self._plan.across, upload)
        return self._axes

    def _tried(self, area: Area, stage: Callable[[], Done]) -> Done | None:
        """None if it was too much: it waits again, in smaller ones."""
        try:
            return stage()
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            self._engine.ran_out(exc, *area.reads)
        self._short = True
        self._again([area])
        return None

    def _again(self, areas: Iterable[Area]) -> None:
        """Let them wait as they fit now, before all others."""
        pieces = [
            piece
            for area in areas
            for piece in self._cut(
                area.picture, (area.rows.start, area.rows.stop), (area.columns[0].start, area.columns[-1].stop)
            )
        ]
        self._waiting.extendleft(reversed(pieces))

    def _cut(self, picture: int, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[Area]:
        """Those pixels in areas that fit."""
        height, width = self._plan.size
        across = self._engine.budget.spans(width, *columns)
        for down in self._engine.budget.spans(height, *rows):
            _, read_height, read_width = Area(picture, down, (across[0],)).reads
            most = max(1, self._engine.budget.pixels // (read_height * read_width))
            count = math.ceil(len(across) / math.ceil(len(across) / most))  # of even size: their stacks are equal
            for first in range(0, len(across), count):
                yield Area(picture, down, tuple(across[first : first + count]))
