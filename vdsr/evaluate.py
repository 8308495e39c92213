"""How good is an upscaled picture? Three comparisons, never mixed: a test set, a reference, the picture itself.

`score_degraded` shrinks a picture and restores it both ways: with HR images of a test set this is the literature's
protocol; with a user's own picture it is a proxy (the picture itself is not what the network was judged on).
`score_reference` compares an upscaled picture with the true one. Bicubic stands beside the network in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdsr.banded import BLOCK
from vdsr.color import gray_to_y, rgb_to_y, y_to_gray
from vdsr.metrics import psnr_y, ssim
from vdsr.resize import bicubic, plan_bicubic

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler

PROTOCOL = {
    "luminance": "BT.601, 16 to 235, rounded to 8 bits; gray images on their own gray values",
    "degradation": "HR cropped to a multiple of the scale; antialiased bicubic as MATLAB's imresize, kept in float",
    "upscaling": "in float, rounded and clipped to 8 bits once at the end",
    "shave": "scale, rounded up, on each side",
    "ssim": "11x11 Gaussian window, sigma 1.5, K1 0.01, K2 0.03",
    "mean": "of the images' figures",
}


class NotComparable(ValueError):
    """A figure cannot be computed; the message is its reason."""


@dataclass(frozen=True)
class Score:
    """PSNR-Y in dB, and SSIM where it was asked for and the picture is large enough."""

    psnr_y: float
    ssim: float | None


@dataclass(frozen=True)
class Comparison:
    """The same picture restored by bicubic interpolation and by the network."""

    bicubic: Score
    vdsr: Score

    @property
    def gain_db(self) -> float:
        """What the network adds over bicubic; 0 where both are perfect."""
        if self.vdsr.psnr_y == self.bicubic.psnr_y:
            return 0.0
        return self.vdsr.psnr_y - self.bicubic.psnr_y


def score_degraded(
    upscaler: Upscaler,
    pixels: NDArray[Any],
    scale: float,
    *,
    with_ssim: bool = True,
    on_tile: Callable[[], None] | None = None,
) -> Comparison:
    """Shrink a picture by `scale`, restore it both ways, compare with what it was.

    Args:
        pixels: (H, W) or (H, W, C) uint8 or uint16; alpha is left out.

    Raises:
        NotComparable: too small to be shrunk and shaved.
    """
    degraded = Degraded(pixels, scale)
    return degraded.compare(upscaler.sharpen(degraded.y, on_tile=on_tile), with_ssim=with_ssim)


class Degraded:
    """A picture that was shrunk by `scale` and enlarged by bicubic interpolation."""

    def __init__(self, pixels: NDArray[Any], scale: float) -> None:
        """
        Args:
            pixels: (H, W) or (H, W, C) uint8 or uint16; alpha is left out.

        Raises:
            NotComparable: too small to be shrunk and shaved.
        """
        self._scale, self._gray = scale, color_channels(pixels) == 1
        self._hr = _cropped(luminance(pixels), scale)
        if min(self._hr.shape) < 2 * math.ceil(scale) + 1:
            raise NotComparable(f"{pixels.shape[1]} x {pixels.shape[0]} pixels are too few to shrink by {scale:g}")
        height, width = self._hr.shape
        small = bicubic(self._hr.astype(np.float64), scale=1 / scale)
        self._up = bicubic(small, scale=scale)[:height, :width] / 255
        self.y = (gray_to_y(self._up) if self._gray else self._up).astype(np.float32)
        """(H, W) luminance, what the network restores."""

    def compare(self, restored: NDArray[np.float32], *, with_ssim: bool) -> Comparison:
        """What the network made of `y`, and `y` itself, against the picture."""
        sr = y_to_gray(restored) if self._gray else restored
        return _compare(code_values(self._up), code_values(sr), self._hr, self._scale, with_ssim)


def score_reference(sr: NDArray[Any], lr: NDArray[Any], reference: NDArray[Any], scale: float) -> Comparison:
    """Compare an upscaled picture, and the bicubic one of the same input, with the true picture.

    A reference may be larger or smaller by less than the scale (datasets crop to a multiple of it): the common
    top left part is compared.

    Raises:
        NotComparable: other sizes, gray against colour, or too small to be shaved.
    """
    if color_channels(sr) != color_channels(reference):
        raise NotComparable("one is gray and the other has colour")
    check_sizes(sr, reference.shape[:2], scale)
    height, width = (min(a, b) for a, b in zip(sr.shape[:2], reference.shape[:2], strict=True))
    y_bicubic = _bicubic_luminance(lr, scale)[:height, :width]
    y_sr, y_hr = (luminance(p)[:height, :width] for p in (sr, reference))
    if min(height, width) < 2 * math.ceil(scale) + 1:
        raise NotComparable(f"{width} x {height} pixels are too few to shave by {math.ceil(scale)}")
    return _compare(y_bicubic, y_sr, y_hr, scale, with_ssim=True)


def lr_consistency(sr: NDArray[Any], lr: NDArray[Any], scale: float, *, most_pixels: int | None = None) -> float:
    """PSNR-Y in dB of an output that is shrunk to its input's size again, against the input.

    It finds damage (a shifted tile, a wrong colour), not quality: bicubic interpolation scores well, too.

    Args:
        sr: (H * scale, W * scale, ...), sizes rounded up.
        lr: (H, W, ...) uint8 or uint16, with the same channels; alpha is left out.
        most_pixels: of `lr`, that are compared: rows round its middle; None compares all of it.

    Returns:
        Infinity where they are equal.
    """
    height, width = lr.shape[:2]
    rows = height if most_pixels is None else min(height, max(1, most_pixels // width))
    first = (height - rows) // 2
    plan = plan_bicubic(sr.shape[:2], scale=1 / scale)
    shrunk = np.empty((rows, width), np.uint8)
    for start in range(first, first + rows, BLOCK):
        stop = min(start + BLOCK, first + rows)
        low, high = plan.source_rows(start, stop)
        y = luminance(sr[low:high]).astype(np.float32)
        band = plan.rows(y, start, stop, low)[:, :width]  # rounded up twice, it may be wider by one
        shrunk[start - first : stop - first] = np.clip(np.round(band), 0, 255).astype(np.uint8)
    return psnr_y(shrunk, luminance(lr[first : first + rows]), shave=0)


def check_sizes(sr: NDArray[Any], reference: tuple[int, ...], scale: float) -> None:
    """Whether an upscaled picture can be compared with one of this (height, width).

    Raises:
        NotComparable: it is larger or smaller by the scale or more.
    """
    if any(abs(a - b) >= math.ceil(scale) for a, b in zip(sr.shape[:2], reference, strict=True)):
        wanted, given = (f"{width} x {height}" for height, width in (sr.shape[:2], reference))
        raise NotComparable(f"the reference has {given} pixels, the output {wanted}")


def mean_comparison(rows: Sequence[Comparison]) -> Comparison:
    """The mean of images' figures: what papers print for a set; NaN where there are none."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None

    def score(scores: list[Score]) -> Score:
        psnr = mean([s.psnr_y for s in scores])
        return Score(psnr_y=math.nan if psnr is None else psnr, ssim=mean([s.ssim for s in scores]))

    return Comparison(bicubic=score([r.bicubic for r in rows]), vdsr=score([r.vdsr for r in rows]))


def color_channels(pixels: NDArray[Any]) -> int:
    """1 for gray (with or without alpha), 3 for colour."""
    return 1 if pixels.ndim == 2 or pixels.shape[2] == 2 else 3


def luminance(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) uint8: studio-range Y of colour, gray values of gray; what the literature scores."""
    peak = np.iinfo(pixels.dtype).max
    y = np.empty(pixels.shape[:2], np.uint8)
    for start in range(0, len(y), BLOCK):  # in bands: in float64, a large picture would take gigabytes
        band = pixels[start : start + BLOCK]
        if color_channels(pixels) == 1:
            y[start : start + BLOCK] = code_values((band if band.ndim == 2 else band[..., 0]) / peak)
        else:
            y[start : start + BLOCK] = code_values(rgb_to_y(band[..., :3].transpose(2, 0, 1), peak=peak))
    return y


def code_values(plane: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Fractions of 255, rounded and clipped to 8 bits."""
    return np.clip(np.round(plane * 255), 0, 255).astype(np.uint8)


def _compare(
    interpolated: NDArray[np.uint8],
    sr: NDArray[np.uint8],
    hr: NDArray[np.uint8],
    scale: float,
    with_ssim: bool,
) -> Comparison:
    shave = math.ceil(scale)
    large = with_ssim and min(hr.shape) - 2 * shave >= 11
    return Comparison(
        *(
            Score(psnr_y=psnr_y(image, hr, shave=shave), ssim=ssim(image, hr, shave=shave) if large else None)
            for image in (interpolated, sr)
        )
    )


def _cropped(plane: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Cut to the largest size that the scale divides: a multiple of 3 for 3 and for 1.5 = 3/2."""
    near = Fraction(scale).limit_denominator(100)
    multiple = near.numerator if abs(float(near) - scale) < 1e-9 else 1  # 3840 / 1013 divides nothing
    if multiple > 16:  # 2.37 would cut up to 236 pixels; its last LR pixel then hangs over the edge instead
        return plane
    height, width = (n - n % multiple for n in plane.shape)
    return plane[:height, :width]


def _bicubic_luminance(pixels: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    """Luminance of the bicubic image, which is rounded to the input's depth first, as if it had been written."""
    peak = np.iinfo(pixels.dtype).max
    samples = (pixels[..., None] if pixels.ndim == 2 else pixels)[..., : color_channels(pixels)]
    plan = plan_bicubic(pixels.shape[:2], scale=scale)
    y = np.empty(plan.size, np.uint8)
    for start in range(0, len(y), BLOCK):
        stop = min(start + BLOCK, len(y))
        first, last = plan.source_rows(start, stop)
        planes = samples[first:last].transpose(2, 0, 1).astype(np.float32)
        band = np.clip(np.round(plan.rows(planes, start, stop, first)), 0, peak).astype(pixels.dtype)
        y[start:stop] = luminance(band.transpose(1, 2, 0) if len(band) == 3 else band[0])
    return y
