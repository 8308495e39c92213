"""What colour lies under transparent pixels? The colour of what is next to them, so that edges get no halo.

Files often hold black or white where alpha is zero. An upscaler that mixes neighbours drags that colour into the
visible edge. Before upscaling, colour is therefore bled into the transparent parts by the push-pull method
(Gortler et al., "The Lumigraph", 1996, section 3.4): average downwards with alpha as weight, fill upwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bleed(color: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace the colour of fully transparent pixels; all others keep theirs.

    Args:
        color: (C, H, W) in [0, 1].
        alpha: (H, W) in [0, 1].

    Returns:
        (C, H, W); unchanged where nothing, or everything, is transparent.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return color
    bled: NDArray[np.float32] = np.where(hidden, _fill(color * alpha, alpha), color)
    return bled


def _fill(weighted: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colour everywhere, out of colour times weight; recursion halves the image until no gap is left."""
    color = (weighted / np.maximum(weight, 1e-6)).astype(np.float32, copy=False)
    if weight.all() or max(weight.shape) == 1:
        return color
    height, width = weight.shape
    coarse = _fill(*(_halve(plane) for plane in (weighted, weight)))
    enlarged = coarse.repeat(2, axis=-2).repeat(2, axis=-1)[..., :height, :width]
    filled: NDArray[np.float32] = np.where(weight > 0, color, enlarged)
    return filled


def _halve(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2 x 2 pixels over the last two axes; an odd edge is mirrored."""
    odd = [(0, 0)] * (planes.ndim - 2) + [(0, n % 2) for n in planes.shape[-2:]]
    even = np.pad(planes, odd, mode="edge")
    return (even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]) / np.float32(4)
