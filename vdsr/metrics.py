"""How close is a restored picture to the true one? PSNR and SSIM as the super-resolution literature computes them.

Both work on 8-bit luminance with `shave` pixels cut from each side, where methods differ in how they treat borders.
A set's figure is the mean of its images' figures.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vdsr.banded import BLOCK, Banded, banded

WINDOW, SIGMA = 11, 1.5  # Wang et al. (2004), section III-C


def psnr_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, shave: int) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE); infinity where they are equal.

    Args:
        sr, hr: (H, W) uint8 luminance.
        shave: pixels to cut from each side; the literature's is the scale, rounded up.

    Raises:
        ValueError: the shapes differ, or nothing is left after shaving.
    """
    a, b = _shaved(sr, hr, shave, 1)
    total = 0
    for start in range(0, len(a), BLOCK):
        difference = a[start : start + BLOCK].astype(np.int64) - b[start : start + BLOCK]
        total += int((difference * difference).sum())
    mse = total / a.size
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, shave: int) -> float:
    """Mean structural similarity (Wang et al., "Image quality assessment", 2004) of (H, W) uint8 luminance.

    11x11 Gaussian window with sigma 1.5, no padding, no downsampling, K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: the shapes differ, or fewer than 11x11 pixels are left after shaving.
    """
    a, b = _shaved(sr, hr, shave, WINDOW)
    down, across = _gaussian(a.shape[0]), _gaussian(a.shape[1])
    total = 0.0
    for start in range(0, down.out_len, BLOCK):  # in bands: the five planes of a large picture would take gigabytes
        low, high = down.sources(start, min(start + BLOCK, down.out_len))
        x, y = a[low:high].astype(np.float64), b[low:high].astype(np.float64)
        planes = np.stack([x, y, x * x, y * y, x * y])
        (band,) = down.row_blocks(planes, start, min(start + BLOCK, down.out_len), low)
        total += _similarity(across.along_columns(band))
    return total / (down.out_len * across.out_len)


def _similarity(means: NDArray[np.floating]) -> float:
    """The sum of SSIM over windows, equation (13), from Gaussian means of a, b, a a, b b, a b: (5, H, W)."""
    mean_a, mean_b, aa, bb, ab = means
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    numerator = (2 * product + c1) * (2 * (ab - product) + c2)
    denominator = (squares + c1) * (aa + bb - squares + c2)
    return float((numerator / denominator).sum())


def _shaved(
    sr: NDArray[np.uint8], hr: NDArray[np.uint8], shave: int, least: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if sr.shape != hr.shape:
        raise ValueError(f"cannot compare images of {sr.shape} and {hr.shape} (height, width)")
    height, width = sr.shape
    if min(height, width) - 2 * shave < least:
        raise ValueError(
            f"{width}x{height} pixels less {shave} on each side are too few; at least {least}x{least} are needed"
        )
    inside = np.s_[shave : height - shave, shave : width - shave]
    return sr[inside], hr[inside]


@lru_cache(maxsize=16)
def _gaussian(length: int) -> Banded:
    taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    out_len = length - WINDOW + 1
    indices = np.arange(out_len)[:, None] + np.arange(WINDOW)
    return banded(indices, np.broadcast_to(taps / taps.sum(), indices.shape), length)
