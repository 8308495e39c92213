"""What computes the network's residual on this machine? Our compiled code on CPUs, torch elsewhere.

Both take luminance row by row and give the residual's rows as soon as they can, so that the caller never has to hold
a whole image in float.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from vdsr.device import ENGINES, DeviceError, choose_dtype
from vdsr.errors import CheckpointError
from vdsr.tiling import spans

if TYPE_CHECKING:
    from vdsr.model import VDSR
    from vdsr.resize import Bicubic

Plane = NDArray[np.float32]
"""(H, W), or some rows of one."""


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
    """A strip of the image that is read with this many more columns to each side, and begins at a multiple of that,
    comes out as in the whole image."""
    redone: int
    """Tiles so far that were not finite and were computed again in fp32."""
    relieved: int
    """How often so far less was computed at a time, since memory had run out."""

    @property
    def tile(self) -> int:
        """Pixels a side that one tile contributes just now; 0 where there are none."""

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """Begin an image; `on_tile` is called before each piece of work, and what it raises ends the image."""


@runtime_checkable
class Batching(Protocol):
    """An engine that computes many small images at once."""

    def residuals(self, planes: NDArray[np.float32], on_tile: Callable[[], None]) -> NDArray[np.float32]:
        """(N, H, W) in [0, 1] to (N, H, W): each image's residual, as if it were alone."""


@runtime_checkable
class Picturing(Protocol):
    """An engine that makes whole pictures: bicubic and colour too."""

    makes_pictures: bool
    """Whether it shall: that is worth it on a card, and has proven itself there (`vdsr.picture_trial`)."""

    def pictures(
        self,
        samples: Sequence[NDArray[Any]],
        plan: Bicubic,
        outs: Sequence[NDArray[Any]],
        on_tile: Callable[[], None],
    ) -> None:
        """Fill each of `outs`, (*plan.size, C), from pictures of one shape, (H, W, C), C of 1 or 3, uint8 or uint16."""


def make_engine(model: VDSR, device: torch.device, precision: str, tile: int, kind: str = "auto") -> Engine:
    """The fastest that gives the precision on the device.

    Args:
        tile: pixels a side of torch's tiles; 0 suits the device.
        kind: "auto", or "native" or "torch" where that very one is wanted.

    Raises:
        DeviceError: an unknown precision, or a kind that is not here.
    """
    if kind not in ENGINES:
        raise DeviceError(f"unknown engine {kind!r}; use one of {', '.join(ENGINES)}")
    dtype = choose_dtype(precision, device)
    if kind != "torch" and device.type == "cpu":
        from vdsr.native_engine import native_engine

        if (compiled := native_engine(model, precision)) is not None:
            return compiled
    if kind == "native":
        raise DeviceError(
            f"the native engine is not here for {device} in {precision}: it computes on CPUs, bf16 only on those "
            "with AMX, and is built when the package is installed beside a C++ compiler; use auto"
        )
    from vdsr.picture_trial import can_be_trusted
    from vdsr.torch_engine import TorchEngine

    engine = TorchEngine(model, device, dtype, tile)
    engine.makes_pictures = device.type == "cuda" and can_be_trusted(engine)
    return engine


def whole(engine: Engine, plane: Plane, on_tile: Callable[[], None]) -> Plane:
    """The residual of all of (H, W)."""
    height, width = plane.shape
    return engine.stream(height, width, on_tile).push(plane)


def residuals(engine: Engine, planes: NDArray[np.float32], on_tile: Callable[[], None]) -> NDArray[np.float32]:
    """As `Batching`, by any engine."""
    if isinstance(engine, Batching):
        return engine.residuals(planes, on_tile)
    return np.stack([whole(engine, plane, on_tile) for plane in planes])


def is_finite(plane: Plane | torch.Tensor) -> bool:
    """Whether all values are numbers; of a card's tensor, that waits for the card."""
    if isinstance(plane, torch.Tensor):
        return bool(torch.isfinite(plane).all())
    # One pass without a temporary: infinities and NaN survive a sum. Huge finite numbers may overflow it.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(plane.sum())) or bool(np.isfinite(plane).all())


def blame(*, sound: bool) -> Exception:
    """Why a residual is not finite even in fp32.

    Args:
        sound: whether the luminance was.
    """
    if not sound:
        return ValueError("the luminance has values that are not finite")
    return CheckpointError(
        "the network gives infinite or undefined residuals even in fp32: its weights are broken; use another checkpoint"
    )


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
