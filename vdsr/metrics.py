"""How close is a restored picture to the true one? PSNR and SSIM as the super-resolution literature computes them.

Both work on 8-bit luminance with `shave` pixels cut from each side, where methods differ in how they treat borders.
A set's figure is the mean of its images' figures.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vdsr.banded import Banded, banded

WINDOW, SIGMA = 11, 1.5  # Wang et al. (2004), section III-C


def psnr_y(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, shave: int) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / MSE); infinity where they are equal.

    Args:
        sr, hr: (H, W) uint8 luminance.
        shave: pixels to cut from each side; the literature's is the scale, rounded up.

    Raises:
        ValueError: the shapes differ, or nothing is left after shaving.
    """
    a, b = _shaved(sr, shave, 1), _shaved(hr, shave, 1)
    _same_shape(a, b)
    mse = float(np.mean((a - b) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(sr: NDArray[np.uint8], hr: NDArray[np.uint8], *, shave: int) -> float:
    """Mean structural similarity (Wang et al., "Image quality assessment", 2004) of (H, W) uint8 luminance.

    11x11 Gaussian window with sigma 1.5, no padding, no downsampling, K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: the shapes differ, or fewer than 11x11 pixels are left after shaving.
    """
    a, b = _shaved(sr, shave, WINDOW), _shaved(hr, shave, WINDOW)
    _same_shape(a, b)
    mean_a, mean_b, aa, bb, ab = _window(np.stack([a, b, a * a, b * b, a * b]))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    numerator = (2 * product + c1) * (2 * (ab - product) + c2)
    denominator = (squares + c1) * (aa + bb - squares + c2)
    return float(np.mean(numerator / denominator))


def _shaved(image: NDArray[np.uint8], shave: int, least: int) -> NDArray[np.float64]:
    height, width = image.shape
    if min(height, width) - 2 * shave < least:
        raise ValueError(
            f"{width}x{height} pixels less {shave} on each side are too few; at least {least}x{least} are needed"
        )
    return image[shave : height - shave, shave : width - shave].astype(np.float64)


def _same_shape(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"cannot compare images of {a.shape} and {b.shape} (height, width)")


def _window(planes: NDArray[np.float64]) -> NDArray[np.floating]:
    """Gaussian means wherever the whole window fits: (N, H, W) to (N, H - 10, W - 10)."""
    down, across = _gaussian(planes.shape[-2]), _gaussian(planes.shape[-1])
    return across.along_columns(np.concatenate(list(down.row_blocks(planes, 0, down.out_len)), axis=-2))


@lru_cache(maxsize=16)
def _gaussian(length: int) -> Banded:
    taps = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    out_len = length - WINDOW + 1
    indices = np.arange(out_len)[:, None] + np.arange(WINDOW)
    return banded(indices, np.broadcast_to(taps / taps.sum(), indices.shape), length)
