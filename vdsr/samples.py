"""How do code values become luminance, chroma and code values again, on whatever device the tensors are?

The formulas of `vdsr.color` and `vdsr.resize` once more, in torch and with few temporaries. Bicubic gathers its taps:
a card is bound by memory here, and the dense blocks that suit a CPU's BLAS would move and multiply zeros.
Element by element, so that a pixel has the same bits in whatever piece of the picture it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdsr.banded import Banded
from vdsr.color import RGB_TO_YCBCR, YCBCR_TO_RGB

WORD = 1 << 16
"""uint16 travels in the bits of int16: torch computes with few types that have no sign, and differently on each
device. What was above 32,767 then is negative, and the remainder by this is what it was."""


def carried(samples: NDArray[Any]) -> NDArray[Any]:
    """uint8 or uint16 samples in a type that torch has everywhere: the same memory."""
    return samples.view(np.int16) if samples.dtype == np.uint16 else samples


def unpacked(codes: Tensor) -> Tensor:
    """(h, w, 1 or 3) `carried` samples to luminance, and chroma if there is any, (1 or 3, h, w) as `vdsr.color`."""
    planes = codes.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    if codes.dtype == torch.int16:
        planes.remainder_(WORD)
    planes.div_(_peak(codes.dtype))
    if len(planes) == 1:
        return _gray_to_y(planes)
    red, green, blue = planes
    red -= green  # differences: where they are 0, chroma is exactly 0
    blue -= green
    ycbcr = torch.empty_like(planes)
    for out, (of_red, _, of_blue) in zip(ycbcr, (RGB_TO_YCBCR / 255).tolist(), strict=True):
        torch.mul(red, of_red, out=out).add_(blue, alpha=of_blue)
    ycbcr[0].add_(_gray_to_y(green))
    return ycbcr


def packed(y: Tensor, chroma: Tensor, dtype: torch.dtype) -> Tensor:
    """Sharpened luminance (h, w) and chroma (0 or 2, h, w) to `carried` samples (h, w, 1 or 3); overwrites `y`.

    Args:
        dtype: of the samples, uint8 or int16.
    """
    gray = y.mul_(255 / 219).add_(-16 / 219)
    planes = gray[None]
    if len(chroma):
        planes = torch.empty((3, *gray.shape), device=gray.device)
        for out, (_, of_blue, of_red) in zip(planes, (YCBCR_TO_RGB * 255).tolist(), strict=True):
            torch.mul(chroma[0], of_blue, out=out).add_(chroma[1], alpha=of_red).add_(gray)
    peak = _peak(dtype)
    planes.mul_(peak).round_().clamp_(0, peak)
    if dtype == torch.int16:
        planes.add_(WORD // 2).remainder_(WORD).sub_(WORD // 2)
    return planes.permute(1, 2, 0).to(dtype, memory_format=torch.contiguous_format)


class Axis:
    """One axis of a resize, its taps on the device."""

    def __init__(self, banded: Banded, upload: Callable[[NDArray[Any]], Tensor]) -> None:
        self._taps, weights = banded.taps()
        self._indices, self._weights = upload(self._taps), upload(weights.astype(np.float32))  # (taps, out_len)

    def sources(self, start: int, stop: int) -> tuple[int, int]:
        """The range of inputs that outputs start..stop are made of."""
        used = self._taps[:, start:stop]
        return int(used.min()), int(used.max()) + 1

    def applied(self, planes: Tensor, start: int, stop: int, *, origin: int, across: bool) -> Tensor:
        """Outputs start..stop, down the columns of (C, h, w) or across its rows.

        Args:
            planes: the inputs from `origin` on, as far as `sources` says.
        """
        indices, weights = self._indices[:, start:stop] - origin, self._weights[:, start:stop]
        axis = 2 if across else 1
        if not across:
            weights = weights[..., None]
        total = planes.index_select(axis, indices[0]).mul_(weights[0])
        for index, weight in zip(indices[1:], weights[1:], strict=True):
            total.addcmul_(planes.index_select(axis, index), weight)
        return total


def _gray_to_y(gray: Tensor) -> Tensor:
    return gray.mul_(219 / 255).add_(16 / 255)


def _peak(dtype: torch.dtype) -> int:
    return 255 if dtype == torch.uint8 else WORD - 1
