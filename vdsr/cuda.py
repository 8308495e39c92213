"""How does a card compute stacks of tiles? By one CUDA graph a shape, while the next stack travels.

Three streams: to the card, computing, and back. A stack's luminance goes through pinned memory of a `_Slot`; there are
two, so that the processor fills one while the card works on the other. Whole pictures (`vdsr.on_card`) travel as bytes,
through pinned memory that torch's allocator gives and takes back when the stream has done with it.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdsr.engine import Plane
from vdsr.layers import Layers, inference, layer_dtypes
from vdsr.schedule import SMALLEST, Budget

Program = TypeVar("Program")

TILE = 1048
"""Pixels a side that a tile contributes: its halo is 8% more to compute, and 1080 rows fit into one tile."""
STEP = 64
"""Tiles read multiples of this, so that images of many sizes have few shapes."""
MOST_PIXELS = 8 << 20
"""That a stack reads: larger ones only make the caller wait longer."""
BYTES_A_PIXEL = 64 * (4 + 4 + 2 + 2)
"""Of the first layers: fp32 written, with its ReLU in place, cast, the next layer's; and a margin for workspaces."""
PICTURE_BYTES_A_PIXEL = 112
"""Of three areas of a picture under way, in float and in bytes; 97 at most (`tests/vdsr/test_on_card.py` counts)."""
SHARE = 0.4
"""Of the memory that is free at first: others use the card too, and an estimate is an estimate."""
GRAPHS = 8
"""Shapes whose graphs are kept."""


def first_budget(tile: int, halo: int, free_bytes: int) -> Budget:
    """How much to compute at a time on a card with so much free memory."""
    pixels = min(MOST_PIXELS, int(free_bytes * SHARE) // (BYTES_A_PIXEL + PICTURE_BYTES_A_PIXEL))
    tile = tile or TILE
    while tile > SMALLEST and (tile + 2 * halo) ** 2 > pixels:
        tile = max(SMALLEST, tile // 2)
    return Budget(tile, pixels, halo, STEP)


class Recent(Generic[Program]):
    """What was made for a shape, for the last few shapes; made at a shape's second use, since many come only once."""

    def __init__(self, make: Callable[[tuple[int, ...]], Program], limit: int) -> None:
        self._make, self._limit = make, limit
        self._made: OrderedDict[tuple[int, ...], Program] = OrderedDict()
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()

    def get(self, shape: tuple[int, ...]) -> Program | None:
        """None at a first use."""
        if shape in self._made:
            self._made.move_to_end(shape)
            return self._made[shape]
        if shape not in self._seen:
            self._seen[shape] = None
            if len(self._seen) > 8 * self._limit:
                self._seen.popitem(last=False)
            return None
        program = self._made[shape] = self._make(shape)
        if len(self._made) > self._limit:
            self._made.popitem(last=False)
        return program

    def clear(self) -> None:
        """Give up everything."""
        self._made.clear()
        self._seen.clear()


_capturing = threading.Lock()
"""A capture begins by waiting for the whole card, which another thread's capture would not survive."""


class CudaExecutor:
    """As `vdsr.torch_engine.Executor`."""

    depth = 2

    def __init__(
        self,
        kernels: Sequence[Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        graphs: int = GRAPHS,
        tune: bool = False,
    ) -> None:
        """
        Args:
            graphs: shapes to keep graphs of; 0 computes layer by layer.
            tune: let cuDNN time its algorithms for each shape, instead of estimating which is fastest.
        """
        index = device.index if device.index is not None else torch.cuda.current_device()
        self.device = torch.device("cuda", index)
        self.layers = Layers(kernels, self.device, layer_dtypes(len(kernels), "cuda", dtype))
        self._exact = Layers(kernels, self.device, layer_dtypes(len(kernels), "cuda", torch.float32))
        self._tune = tune
        self._to, self._compute, self._back = (_stream(self.device) for _ in range(3))
        self._slots = [_Slot(self.device) for _ in range(self.depth)]
        self._graphs = Recent(self._capture, graphs) if graphs else None
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.current_stream(self.device).synchronize()  # the weights, before another stream reads them

    def budget(self, tile: int, halo: int) -> Budget:
        """As `Executor`."""
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        return first_budget(tile, halo, free_bytes)

    def begin(self, planes: Sequence[Plane], *, exact: bool) -> Callable[[], NDArray[np.float32]]:
        """As `Executor`; the stack that is returned is overwritten by the second `begin` from here."""
        shape = (len(planes), 1, *planes[0].shape)
        slot = self._slots[0]
        with torch.cuda.device(self.device), inference(tune=self._tune):
            host, card = slot.stage(planes)
            with torch.cuda.stream(self._to):
                card.copy_(host, non_blocking=True)
            self._compute.wait_stream(self._to)
            with torch.cuda.stream(self._compute):
                card.copy_(self._run(card.view(shape), exact).reshape(-1))
            self._back.wait_stream(self._compute)
            with torch.cuda.stream(self._back):
                host.copy_(card, non_blocking=True)
                slot.done.record()
        self._slots.append(self._slots.pop(0))  # only now: a stack that did not fit took no turn

        def result() -> NDArray[np.float32]:
            slot.done.synchronize()
            residuals: NDArray[np.float32] = host.numpy().reshape(len(planes), *planes[0].shape)
            return residuals

        return result

    def begin_there(self, planes: Sequence[Tensor], *, exact: bool) -> Callable[[], list[Tensor | None]]:
        """As `Executor`."""
        done = _event()
        with self.working():
            # A copy: the next stack of this shape overwrites what a graph gave.
            residuals = self._run(torch.stack(list(planes))[:, None], exact)[:, 0].clone()
            finite = torch.isfinite(residuals).flatten(1).all(1)  # (N,)
            sound = torch.empty(len(planes), dtype=torch.bool, pin_memory=True)
            sound.copy_(finite, non_blocking=True)
            done.record()

        def result() -> list[Tensor | None]:
            done.synchronize()
            return [plane if good else None for plane, good in zip(residuals, sound.tolist(), strict=True)]

        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """As `Executor`."""
        with torch.cuda.device(self.device), inference(tune=self._tune), torch.cuda.stream(self._compute):
            yield

    def upload(self, samples: NDArray[Any]) -> Tensor:
        """As `Executor`; torch's allocator keeps the pinned memory until it has been read."""
        host = torch.empty(samples.shape, dtype=_dtype(samples), pin_memory=True)
        np.copyto(host.numpy(), samples)
        with torch.cuda.stream(self._to):
            there = host.to(self.device, non_blocking=True)
        self._compute.wait_stream(self._to)
        there.record_stream(self._compute)  # or it might be given away while this stream still reads it
        return there

    def download(self, codes: Tensor) -> Callable[[], NDArray[Any]]:
        """As `Executor`."""
        host, done = torch.empty(codes.shape, dtype=codes.dtype, pin_memory=True), _event()
        self._back.wait_stream(self._compute)
        with torch.cuda.stream(self._back):
            host.copy_(codes, non_blocking=True)
            done.record()
        codes.record_stream(self._back)

        def result() -> NDArray[Any]:
            done.synchronize()
            pixels: NDArray[Any] = host.numpy()
            return pixels

        return result

    def relieve(self) -> None:
        """As `Executor`."""
        for stream in (self._to, self._compute, self._back):
            stream.synchronize()
        if self._graphs is not None:
            self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()  # a pool that all graphs have left cannot be entered again
        torch.cuda.empty_cache()

    def _run(self, y: Tensor, exact: bool) -> Tensor:
        """(N, 1, h, w) on the card to the residual, on the current stream."""
        if exact:
            return self._exact(y)
        graph = self._graphs.get(tuple(y.shape)) if self._graphs is not None else None
        return self.layers(y) if graph is None else graph(y)

    def _capture(self, shape: tuple[int, ...]) -> _Graph:
        with _capturing:
            return _Graph(self.layers, shape, self._compute, self._pool)


class _Slot:
    """Pinned memory and the card's, for a stack on its way there and its residual on its way back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = self._card = torch.empty(0)
        self.done = _event()

    def stage(self, planes: Sequence[Plane]) -> tuple[Tensor, Tensor]:
        """The planes in pinned memory, one behind the other, and as much on the card; one dimension each."""
        count = len(planes) * planes[0].size
        if count > self._host.numel():
            size = 1 << math.ceil(math.log2(count))  # so that it seldom grows
            host, card = torch.empty(size, pin_memory=True), torch.empty(size, device=self._device)
            self._host, self._card = host, card  # both or neither
            torch.cuda.current_stream().synchronize()  # what had this memory before may still be at work
        staged = self._host[:count]
        np.stack(planes, out=staged.numpy().reshape(len(planes), *planes[0].shape))
        return staged, self._card[:count]


class _Graph:
    """The network for one shape, recorded: one launch instead of some forty.

    All graphs share a memory pool, since they run one after the other; what goes in lies outside of it, and what
    comes out stays alive with the graph.
    """

    def __init__(self, layers: Layers, shape: tuple[int, ...], stream: torch.cuda.Stream, pool: Any) -> None:
        device = layers.weights[0].device
        self._y = torch.zeros(shape, device=device)
        layers(self._y)  # what cuDNN prepares for a shape must not be captured
        stream.synchronize()  # the graphs that share the pool have to be at rest
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may check a new model meanwhile; the default mode would forbid it to allocate.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._residual = layers(self._y)

    def __call__(self, y: Tensor) -> Tensor:
        """The residual, until the next call."""
        self._y.copy_(y)
        self._graph.replay()
        return self._residual


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
    return event


def _dtype(samples: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, samples.dtype)).dtype


def _stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
    return stream
