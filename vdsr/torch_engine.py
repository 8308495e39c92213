"""How does torch compute an image? In stacks of tiles; the way on CUDA, and the reference everywhere.

What is planned here is the same for every device; how a stack is computed is an `Executor`'s matter. Whatever goes
wrong with a stack, its tiles are planned again or the image ends: no pixel is delivered that was not computed whole.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdsr.device import OutOfMemory
from vdsr.engine import Plane, Stream, blame, is_finite
from vdsr.layers import Layers, inference, layer_dtypes
from vdsr.schedule import Budget, Part, Tile

if TYPE_CHECKING:
    from vdsr.model import VDSR
    from vdsr.resize import Bicubic

Stack = NDArray[np.float32]
"""(N, h, w)"""
CPU_TILE = 256
"""Pixels a side: a tile's activations then stay below 32 MB, where glibc would otherwise map and unmap fresh pages for
every layer."""

log = logging.getLogger(__name__)


class Executor(Protocol):
    """What runs the network over stacks on one device."""

    depth: int
    """Stacks that may be under way at a time; the oldest is waited for before another is begun."""

    def budget(self, tile: int, halo: int) -> Budget:
        """How much to compute at a time at first; a `tile` of 0 leaves its size to the device."""

    def begin(self, planes: Sequence[Plane], *, exact: bool) -> Callable[[], Stack]:
        """Start on planes of equal shape; what is returned waits for their residuals.

        Args:
            exact: all in fp32, whatever the engine's precision.
        """

    def begin_there(self, planes: Sequence[Tensor], *, exact: bool) -> Callable[[], list[Tensor | None]]:
        """As `begin`, of planes that lie on the device, where the residuals stay; None for one that is not finite."""

    def working(self) -> AbstractContextManager[None]:
        """What is done to tensors on the device inside of this waits its turn with the stacks."""

    def upload(self, samples: NDArray[Any]) -> Tensor:
        """A copy on the device, on its way at least; `working`."""

    def download(self, codes: Tensor) -> Callable[[], NDArray[Any]]:
        """Start on the way back; what is returned waits for it; `working`."""

    def relieve(self) -> None:
        """Let go of all memory that can be had again, after an allocation failed."""


class TorchEngine:
    """The twenty layers, one after the other over a stack of tiles."""

    def __init__(
        self, model: VDSR, device: torch.device, dtype: torch.dtype, tile: int, executor: Executor | None = None
    ) -> None:
        self.name = f"torch {device} {'fp32' if dtype == torch.float32 else 'bf16'}"
        self.exact = dtype == torch.float32
        self.halo = model.config.halo
        self.redone = self.relieved = 0
        self.makes_pictures = False
        """As `vdsr.engine.Picturing`; on a CPU the host's bicubic and colour are as fast."""
        self.device = device
        self.executor = executor or make_executor(model.kernels, device, dtype)
        self.budget = self.executor.budget(tile, self.halo)
        self._under_way: deque[tuple[list[Tile[Any]], bool, Callable[[], list[Any]]]] = deque()
        self._warned = False

    @property
    def tile(self) -> int:
        """As `Engine`."""
        return self.budget.tile

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """As `Engine`."""
        return _Image(self, height, width, on_tile)

    def residuals(self, planes: Stack, on_tile: Callable[[], None]) -> Stack:
        """As `vdsr.engine.Batching`."""
        parts: list[Part[Plane]] = []
        tiles: list[Tile[Plane]] = []
        for plane in planes:
            parts.append(Part(np.empty(plane.shape, np.float32)))
            for rows in self.budget.spans(len(plane)):
                tiles += self.budget.tiles(plane[rows.read_start : rows.read_stop], rows, parts[-1], rows.start)
        try:
            self.compute(tiles, on_tile)
            self.finish()
        except BaseException:
            self.abandon(parts)
            raise
        return np.stack([part.plane for part in parts])

    def pictures(
        self,
        samples: Sequence[NDArray[Any]],
        plan: Bicubic,
        outs: Sequence[NDArray[Any]],
        on_tile: Callable[[], None],
    ) -> None:
        """As `vdsr.engine.Picturing`."""
        from vdsr.on_card import Pictures

        Pictures(self, samples, plan, outs, on_tile).make()

    def compute(self, tiles: Sequence[Tile[Any]], on_tile: Callable[[], None], *, exact: bool = False) -> None:
        """Begin on tiles; they are delivered at the latest by `finish`.

        Raises:
            OutOfMemory: not even the smallest tile fits.
        """
        stacks = deque(self.budget.stacks(tiles))
        while stacks:
            on_tile()
            while len(self._under_way) >= self.executor.depth:  # collecting may begin some again
                self._collect()
            stack = stacks.popleft()
            result = self._begin(stack, exact)
            if result is not None:
                self._under_way.append((stack, exact, result))
            else:
                left = [*stack, *(tile for later in stacks for tile in later)]
                stacks = deque(self.budget.stacks(left))

    def finish(self) -> None:
        """Wait for all that is under way."""
        while self._under_way:
            self._collect()

    def abandon(self, parts: Collection[Part[Any]]) -> None:
        """Keep nothing of an image that ends early; others' tiles go on."""
        others: deque[tuple[list[Tile[Any]], bool, Callable[[], list[Any]]]] = deque()
        while self._under_way:
            stack, exact, result = self._under_way.popleft()
            if stack[0].part in parts:
                result()  # waited for: the device still writes where the next stack would lie
            else:
                others.append((stack, exact, result))
        self._under_way = others

    def ran_out(self, exc: BaseException, count: int, height: int, width: int) -> None:
        """Plan less at a time from now on, since memory did not suffice for so many tiles that read (height, width).

        The caller then has to call `Executor.relieve`: not in the except clause, since the exception's frames hold
        tensors.

        Raises:
            OutOfMemory: nothing smaller is left to try.
        """
        self.relieved += 1
        if not self.budget.shrink(count, height, width):
            raise OutOfMemory(self.device, max(height, width)) from exc
        if not self._warned:
            log.warning("out of memory on %s; going on with less at a time: %s", self.device, exc)
            self._warned = True

    def _begin(self, stack: list[Tile[Any]], exact: bool) -> Callable[[], list[Any]] | None:
        """None if it was too much, and less is planned for from now on."""
        planes = [tile.source for tile in stack]
        try:
            if isinstance(planes[0], Tensor):
                return self.executor.begin_there(planes, exact=exact)
            result = self.executor.begin(planes, exact=exact)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            self.ran_out(exc, len(planes), *planes[0].shape)
        else:
            return lambda: [residual if is_finite(residual) else None for residual in result()]
        self.executor.relieve()
        return None

    def _collect(self) -> None:
        """Deliver the oldest stack; what is not finite is begun again in fp32."""
        stack, exact, result = self._under_way.popleft()
        broken: list[Tile[Any]] = []
        with self.executor.working():
            for tile, residual in zip(stack, result(), strict=True):
                if residual is None:
                    broken.append(tile)
                else:
                    tile.deliver(residual)
        if not broken:
            return
        if exact or self.exact:
            raise blame(sound=is_finite(broken[0].source))
        self.redone += len(broken)
        self.compute(broken, lambda: None, exact=True)


class _Image:
    """As `Stream`: a row of tiles is begun as soon as its pixels are here."""

    def __init__(self, engine: TorchEngine, height: int, width: int, on_tile: Callable[[], None]) -> None:
        self._engine, self._width, self._on_tile = engine, width, on_tile
        self._spans = deque(engine.budget.spans(height))
        self._parts: deque[Part[Plane]] = deque()
        self._held: list[Plane] = []
        self._first = self._stop = 0  # the rows held

    def push(self, rows: Plane) -> Plane:
        """As `Stream`."""
        self._held.append(rows)
        self._stop += len(rows)
        try:
            while self._spans and self._stop >= self._spans[0].read_stop:
                self._begin()
            if not self._spans:
                self._engine.finish()
        except BaseException:
            self._engine.abandon(self._parts)
            raise
        done = [rows[:0]]
        while self._parts and not self._parts[0].left:
            done.append(self._parts.popleft().plane)
        return np.concatenate(done)

    def _begin(self) -> None:
        span = self._spans.popleft()
        held = np.concatenate(self._held) if len(self._held) > 1 else self._held[0]
        source = held[span.read_start - self._first : span.read_stop - self._first]
        part = Part(np.empty((span.stop - span.start, self._width), np.float32))
        self._parts.append(part)
        self._engine.compute(list(self._engine.budget.tiles(source, span, part)), self._on_tile)
        if self._spans:  # the next one's halo reaches back
            self._held = [held[self._spans[0].read_start - self._first :]]
            self._first = self._spans[0].read_start


class CpuExecutor:
    """Tile by tile, since a stack's activations would not stay in the caches; done when it has begun."""

    depth = 1

    def __init__(self, kernels: Sequence[Tensor], dtype: torch.dtype) -> None:
        device = torch.device("cpu")
        self.layers = Layers(kernels, device, layer_dtypes(len(kernels), "cpu", dtype))
        self._exact = Layers(kernels, device, layer_dtypes(len(kernels), "cpu", torch.float32))

    def budget(self, tile: int, halo: int) -> Budget:
        """As `Executor`."""
        return Budget(tile or CPU_TILE, 0, halo)

    def begin(self, planes: Sequence[Plane], *, exact: bool) -> Callable[[], Stack]:
        """As `Executor`."""
        layers = self._exact if exact else self.layers
        with inference():
            stack: Stack = layers(torch.from_numpy(np.stack(planes))[:, None])[:, 0].numpy()
        return lambda: stack

    def begin_there(self, planes: Sequence[Tensor], *, exact: bool) -> Callable[[], list[Tensor | None]]:
        """As `Executor`."""
        with inference():
            stack = (self._exact if exact else self.layers)(torch.stack(list(planes))[:, None])[:, 0]
        residuals = [plane if is_finite(plane) else None for plane in stack]
        return lambda: residuals

    def working(self) -> AbstractContextManager[None]:
        """As `Executor`."""
        return inference()

    def upload(self, samples: NDArray[Any]) -> Tensor:
        """As `Executor`."""
        return torch.from_numpy(samples.copy())

    def download(self, codes: Tensor) -> Callable[[], NDArray[Any]]:
        """As `Executor`."""
        return codes.numpy

    def relieve(self) -> None:
        """As `Executor`: there is nothing."""


def make_executor(kernels: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Executor:
    """That of the device."""
    if device.type == "cuda":
        from vdsr.cuda import CudaExecutor

        return CudaExecutor(kernels, device, dtype)
    return CpuExecutor(kernels, dtype)


def is_out_of_memory(exc: BaseException) -> bool:
    """Of the device or the host: only CUDA's allocator has an exception type of its own."""
    if isinstance(exc, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if any(words in str(exc) for words in ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")):
        return True
    # Where it happens while a graph is captured, the end of the capture fails in its turn.
    return exc.__context__ is not None and is_out_of_memory(exc.__context__)
