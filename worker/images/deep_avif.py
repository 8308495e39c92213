"""How is an AVIF of 10 or 12 bits read, of which Pillow keeps 8? By imagecodecs' libavif, an optional package.

Pillow opens the file all the same: it tells the size, how the picture is turned, and what it carries.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.deep import widened


@cache
def can_widen() -> bool:
    """Whether the package is there."""
    return find_spec("imagecodecs") is not None


def avif_pixels(data: bytes, size: tuple[int, int], depth: int) -> NDArray[Any]:
    """(H, W), (H, W, 3) or (H, W, 4) uint16 of the first picture, not turned.

    Args:
        size: width and height, as Pillow tells them.
    """
    import imagecodecs

    samples = imagecodecs.avif_decode(data, index=0, numthreads=1)
    if samples.shape[1::-1] != size or samples.dtype != np.uint16:
        raise ValueError(f"its pixels are {samples.shape} of {samples.dtype}, and its header says {size}")
    return widened(np.ascontiguousarray(samples), depth)
