"""What figures does an outcome carry? PSNR beside that of bicubic, and whether the output agrees with its source.

Numbers as JSON holds them: infinity is "inf".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vdsr.banded import BLOCK
from vdsr.evaluate import Comparison, NotComparable, lr_consistency, score_degraded_alike

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler

Figures = dict[str, Any]
MOST_BAND = 1 << 24
"""Samples of an output that are held in float to see whether it agrees with its source."""
SCORED_PIXELS = 1_000_000
"""Self-degradation looks at a centre crop of at most this size, so that it costs a few per cent of a photograph."""


def self_degradation(
    upscaler: Upscaler, images: Sequence[NDArray[Any]], scale: float, on_tile: Callable[[], None]
) -> list[Figures]:
    """Of sources of one shape: each is shrunk, and restored by the network and by bicubic interpolation."""
    centres = [_centre(pixels) for pixels in images]
    try:
        results = score_degraded_alike(upscaler, centres, scale, with_ssim=False, on_tile=on_tile)
        return [_figures("self-degradation", result) for result in results]
    except NotComparable as exc:  # their shape is one
        return [_no_figures("self-degradation", exc) for _ in images]


def reference(score: Callable[[], Comparison]) -> Figures:
    """Of an output against the true picture."""
    try:
        return _figures("reference", score())
    except NotComparable as exc:
        return _no_figures("reference", exc)


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


def _no_figures(kind: str, reason: NotComparable) -> Figures:
    return {"kind": kind, "bicubic": None, "vdsr": None, "gain": None, "reason": str(reason)}


def _number(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else "inf" if value > 0 else "-inf"
