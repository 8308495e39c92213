"""How does an image become larger or smaller without a network? By MATLAB's bicubic, which the literature uses.

Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -0.5; when shrinking, the
kernel is stretched by 1/scale (antialiasing); borders are mirrored with the edge sample repeated. This is what
`imresize(image, scale, 'bicubic')` computes, and what every published bicubic figure of super-resolution means.
Pillow's mode F equals it inside the picture but not at the borders; OpenCV's cubic has a = -0.75 and no antialiasing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vdsr.banded import BLOCK, Banded, banded


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) after scaling, each at least 1: MATLAB's ceil, but safe from 100 * 1.1 = 110.00000000000001."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}; it must be a positive number")
    height, width = (max(1, math.ceil(round(n * scale, 6))) for n in size)
    return height, width


@dataclass(frozen=True)
class Bicubic:
    """A resize planned once for a size, then applied to whole images or to a range of output rows."""

    down: Banded
    across: Banded

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.down.out_len, self.across.out_len

    def __call__(self, planes: NDArray[np.floating]) -> NDArray[np.floating]:
        """(..., H, W) float in any range to (..., *size); overshoots are not clamped."""
        return self.rows(planes, 0, self.down.out_len)

    def rows(self, planes: NDArray[np.floating], start: int, stop: int, origin: int = 0) -> NDArray[np.floating]:
        """Rows start..stop of the result, with the same bits as in the whole image.

        `planes` may be just the input rows that `source_rows` names; `origin` is then the first of them.
        """
        parts = [self.across.along_columns(block) for block in self.down.row_blocks(planes, start, stop, origin)]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)
        offset = start % BLOCK
        return joined[..., offset : offset + stop - start, :]

    def source_rows(self, start: int, stop: int) -> tuple[int, int]:
        """The range of input rows that output rows start..stop are made of."""
        return self.down.sources(start, stop)


def plan_bicubic(
    source: tuple[int, int], *, scale: float | None = None, size: tuple[int, int] | None = None
) -> Bicubic:
    """Plan a resize from (height, width), by a factor or to a size.

    With `scale`, both axes use that very factor and the size is rounded up, as MATLAB does; with `size`, each axis
    uses its own ratio.
    """
    if (scale is None) == (size is None):
        raise ValueError("give either scale or size")
    if scale is not None:
        target = scaled_size(source, scale)
        scales = (scale, scale)
    else:
        assert size is not None
        target = size
        scales = (size[0] / source[0], size[1] / source[1])
    return Bicubic(
        down=_axis(source[0], target[0], scales[0]),
        across=_axis(source[1], target[1], scales[1]),
    )


def bicubic(
    planes: NDArray[np.floating], *, scale: float | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.floating]:
    """Resize (..., H, W) floating point planes; see `plan_bicubic`."""
    height, width = planes.shape[-2:]
    return plan_bicubic((height, width), scale=scale, size=size)(planes)


def _cubic(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Keys' kernel with a = -0.5, equation (15) of the 1981 paper."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@lru_cache(maxsize=8)  # some 300 bytes a pixel of a side
def _axis(in_len: int, out_len: int, scale: float) -> Banded:
    if in_len < 1 or out_len < 1:
        raise ValueError(f"cannot resize {in_len} samples to {out_len}; both must be at least 1")
    shrink = min(scale, 1.0)  # below 1 the kernel widens, which is the antialiasing
    width = 4 / shrink
    centre = (np.arange(out_len) + 0.5) / scale - 0.5
    left = np.floor(centre - width / 2).astype(np.int64)
    taps = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = shrink * _cubic(shrink * (centre[:, None] - taps))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.mod(taps, 2 * in_len)
    mirrored = np.where(mirrored < in_len, mirrored, 2 * in_len - 1 - mirrored)
    used = np.any(weights != 0, axis=0)
    return banded(mirrored[:, used], weights[:, used], in_len)
