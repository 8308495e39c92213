"""What colour lies under transparent pixels? The colour of what is next to them, so that edges get no halo.

Files often hold black or white where alpha is zero. An upscaler that mixes neighbours drags that colour into the
visible edge. Before upscaling, colour is therefore bled into the transparent parts by the push-pull method
(Gortler et al., "The Lumigraph", 1996, section 3.4): average downwards with alpha as weight, fill upwards.
The picture itself is never held in float: its finest level is made in bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BAND = 64
"""Rows, an even number."""


def is_opaque(pixels: NDArray[Any]) -> bool:
    """Whether an array is gray or RGB, (H, W) or (H, W, 3), without alpha."""
    return pixels.ndim == 2 or pixels.shape[2] == 3


def bled(samples: NDArray[Any]) -> NDArray[Any]:
    """The same picture with colour under its fully transparent pixels; all others keep theirs.

    Args:
        samples: (H, W, C + 1) uint8 or uint16, alpha last, not premultiplied.

    Returns:
        A new array; `samples` itself where nothing, or everything, is transparent.
    """
    hidden = samples[..., -1] == 0
    if not hidden.any() or hidden.all():
        return samples
    coarse = _fill(*_coarse(samples))
    peak = np.float32(np.iinfo(samples.dtype).max)
    coarse *= peak
    colors = np.round(coarse, out=coarse).astype(samples.dtype)
    out = samples.copy()
    for start in range(0, len(out), BAND):
        band, blank = out[start : start + BAND], hidden[start : start + BAND]
        rows = colors[:, start // 2 : start // 2 + BAND // 2]
        enlarged = rows.repeat(2, axis=-2).repeat(2, axis=-1)[..., : len(band), : band.shape[1]]
        for channel, plane in enumerate(enlarged):
            band[..., channel][blank] = plane[blank]
    return out


def _coarse(samples: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Half the size: (C, H/2, W/2) colour times alpha, and (H/2, W/2) alpha, both in [0, 1]."""
    bands = []
    for start in range(0, len(samples), BAND):
        planes = samples[start : start + BAND].transpose(2, 0, 1).astype(np.float32)
        planes /= np.float32(np.iinfo(samples.dtype).max)
        planes[:-1] *= planes[-1]
        bands.append(_halve(planes))
    planes = np.concatenate(bands, axis=1)
    return planes[:-1], planes[-1]


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
