"""What figures does an outcome carry? PSNR beside that of bicubic, and whether the output agrees with its source.

Numbers as JSON holds them: infinity is "inf".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vdsr.banded import BLOCK
from vdsr.evaluate import Comparison, Degraded, NotComparable, lr_consistency

if TYPE_CHECKING:
    from vdsr.engine import Plane

Figures = dict[str, Any]
MOST_BAND = 1 << 24
"""Samples of an output that are held in float to see whether it agrees with its source."""
SCORED_PIXELS = 1_000_000
"""Self-degradation looks at a centre crop of at most this size, so that it costs a few per cent of a photograph."""


class SelfDegradation:
    """A source that is shrunk, to be restored by the network and by bicubic interpolation."""

    def __init__(self, pixels: NDArray[Any], scale: float) -> None:
        self._degraded: Degraded | None = None
        try:
            self._degraded = Degraded(_centre(pixels), scale)
        except NotComparable as exc:
            self._reason = str(exc)

    @property
    def y(self) -> Plane | None:
        """What the network is to restore; None where there is nothing to compare."""
        return self._degraded.y if self._degraded else None

    def figures(self, restored: Plane | None) -> Figures:
        """Of what the network made of `y`."""
        if self._degraded is None or restored is None:
            return _no_figures("self-degradation", self._reason)
        return _figures("self-degradation", self._degraded.compare(restored, with_ssim=False))


def reference(score: Callable[[], Comparison]) -> Figures:
    """Of an output against the true picture."""
    try:
        return _figures("reference", score())
    except NotComparable as exc:
        return _no_figures("reference", str(exc))


def consistency(output: NDArray[Any], source: NDArray[Any], scale: float) -> float | str | None:
    """None for a picture so wide that looking at some of its rows would take memory that nobody reckoned with."""
    if BLOCK * scale * output.shape[1] > MOST_BAND:
        return None
    return _number(lr_consistency(output, source, scale, most_pixels=SCORED_PIXELS))


def _centre(pixels: NDArray[Any]) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    shrink = min(1.0, math.sqrt(SCORED_PIXELS / (height * width)))
    h, w = max(1, int(height * shrink)), max(1, int(width * shrink))
    top, left = (height - h) // 2, (width - w) // 2
    return pixels[top : top + h, left : left + w]


def _figures(kind: str, result: Comparison) -> Figures:
    figures: Figures = {
        "kind": kind,
        "bicubic": _number(result.bicubic.psnr_y),
        "vdsr": _number(result.vdsr.psnr_y),
        "gain": _number(result.gain_db),
        "reason": None,
    }
    if result.vdsr.ssim is not None and result.bicubic.ssim is not None:
        figures["ssim"] = {"bicubic": round(result.bicubic.ssim, 5), "vdsr": round(result.vdsr.ssim, 5)}
    return figures


def _no_figures(kind: str, reason: str) -> Figures:
    return {"kind": kind, "bicubic": None, "vdsr": None, "gain": None, "reason": reason}


def _number(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else "inf" if value > 0 else "-inf"
