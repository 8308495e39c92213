"""What computes the network's residual on this machine? Our compiled code on CPUs, torch elsewhere.

Both take luminance row by row and give the residual's rows as soon as they can, so that the caller never has to hold
a whole image in float.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vdsr.device import ENGINES, DeviceError, choose_dtype
from vdsr.tiling import spans

if TYPE_CHECKING:
    from torch import Tensor

    from vdsr.model import VDSR
    from vdsr.native import Network

Plane = NDArray[np.float32]
"""(H, W), or some rows of one."""
EXACT_LAYERS = 3
"""Hidden layers kept in fp32 in bf16 mode: nearly all of bf16's loss is the rounding of the first activations."""


class Stream(Protocol):
    """One image on its way through the network."""

    def push(self, rows: Plane) -> Plane:
        """Take the image's next rows (k, W) in [0, 1], give the residual's next rows (0 or more, W)."""


class Engine(Protocol):
    """The network with its weights, ready to compute."""

    name: str
    """For people: "native avx512 fp32", "torch cuda:0 bf16"."""
    exact: bool
    """Whether all of its arithmetic is fp32."""
    halo: int
    """A strip of the image that is read with this many more columns to each side comes out as in the whole image."""

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """Begin an image; `on_tile` is called before each piece of work, and what it raises ends the image."""


def make_engine(model: VDSR, device: torch.device, precision: str, tile: int, kind: str = "auto") -> Engine:
    """The fastest that gives the precision on the device.

    Args:
        tile: pixels a side of torch's tiles.
        kind: "auto", or "native" or "torch" where that very one is wanted.

    Raises:
        DeviceError: an unknown precision, or a kind that is not here.
    """
    if kind not in ENGINES:
        raise DeviceError(f"unknown engine {kind!r}; use one of {', '.join(ENGINES)}")
    dtype = choose_dtype(precision)
    if kind != "torch" and device.type == "cpu" and dtype == torch.float32:
        from vdsr.native import Network, library

        if (compiled := library()) is not None:
            return NativeEngine(Network(compiled, model))
    if kind == "native":
        raise DeviceError(
            f"the native engine is not here for {device} in {precision}: it computes fp32 on CPUs, and is built when "
            "the package is installed beside a C++ compiler; use auto"
        )
    return TorchEngine(model, device, dtype, tile)


def whole(engine: Engine, plane: Plane, on_tile: Callable[[], None]) -> Plane:
    """The residual of all of (H, W)."""
    height, width = plane.shape
    return engine.stream(height, width, on_tile).push(plane)


class NativeEngine:
    """Our compiled code: all layers in one pass over the rows, nothing computed twice (vdsr/native/inference.cpp)."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.name = f"native {network.library.variant} fp32"
        self.exact = True
        # A pixel sees one pixel a layer, but the rounding of its tile sees the neighbouring tile.
        self.halo = network.tile * network.depth

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """As `Engine`."""
        return _Checked(self.network.stream(height, width), on_tile)


class _Checked:
    """A stream that calls `on_tile` often enough: a push of many rows is cut up."""

    PIXELS = 1 << 17
    """At a time: a fraction of a second on the slowest machine."""

    def __init__(self, stream: Stream, on_tile: Callable[[], None]) -> None:
        self.stream, self.on_tile = stream, on_tile

    def push(self, rows: Plane) -> Plane:
        """As `Stream`."""
        step = max(1, self.PIXELS // rows.shape[1])
        parts = []
        for start in range(0, len(rows), step):
            self.on_tile()
            parts.append(self.stream.push(rows[start : start + step]))
        return np.concatenate(parts)


class TorchEngine:
    """torch, tile by tile; the reference, and the way on CUDA."""

    def __init__(self, model: VDSR, device: torch.device, dtype: torch.dtype, tile: int) -> None:
        self.device, self.tile, self.halo = device, tile, model.config.halo
        self.name = f"torch {device} {'fp32' if dtype == torch.float32 else 'bf16'}"
        self.exact = dtype == torch.float32
        exact = (0, *range(1, EXACT_LAYERS + 1), model.config.depth - 1)
        self._layers = [
            kernel.detach().to(device, torch.float32 if index in exact else dtype, memory_format=torch.channels_last)
            for index, kernel in enumerate(model.kernels)
        ]

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """As `Engine`."""

        def band(plane: Plane) -> Plane:
            residual = np.empty_like(plane)
            for columns in spans(width, self.tile, self.halo):
                on_tile()
                tile = self._tile(plane[:, columns.read_start : columns.read_stop])
                residual[:, columns.start : columns.stop] = tile[:, columns.kept]
            return residual

        return Bands(band, height, self.tile, self.halo)

    def _tile(self, tile: Plane) -> Plane:
        x = torch.from_numpy(np.ascontiguousarray(tile))[None, None].to(self.device)
        # cuDNN would otherwise round fp32 to TF32's 10 bits
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            residual: Plane = self._residual(x)[0, 0].cpu().numpy()
        return residual

    def _residual(self, x: Tensor) -> Tensor:
        """The twenty layers, as `vdsr.model.VDSR.residual`."""
        x = x.to(memory_format=torch.channels_last)
        for weight in self._layers[:-1]:
            x = torch.conv2d(x.to(weight.dtype), weight, padding=1).relu_()
        return torch.conv2d(x.to(self._layers[-1].dtype), self._layers[-1], padding=1)


class Bands:
    """A stream made of a function of planes: bands of rows that overlap by the halo, of which the middle is kept."""

    def __init__(self, function: Callable[[Plane], Plane], height: int, rows: int, halo: int) -> None:
        self._function = function
        self._spans = deque(spans(height, rows, halo))
        self._held: list[Plane] = []
        self._first = self._stop = 0  # the rows held

    def push(self, rows: Plane) -> Plane:
        """As `Stream`."""
        self._held.append(rows)
        self._stop += len(rows)
        done = [rows[:0]]
        while self._spans and self._stop >= self._spans[0].read_stop:
            span = self._spans.popleft()
            held = np.concatenate(self._held)
            read = held[span.read_start - self._first : span.read_stop - self._first]
            done.append(self._function(read)[span.kept])
            if self._spans:  # the next one's halo reaches back
                self._held = [held[self._spans[0].read_start - self._first :]]
                self._first = self._spans[0].read_start
        return np.concatenate(done)
