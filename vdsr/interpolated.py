"""What does the host do to a picture's samples before and after the network? Bicubic and colour, in bands of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdsr.color import gray_to_y, rgb_to_ycbcr, y_to_gray, ycbcr_to_rgb
from vdsr.engine import Plane
from vdsr.resize import Bicubic


class Interpolated:
    """An image at its new size by bicubic, in bands of rows: its luminance, and its colour once that is sharpened."""

    def __init__(self, samples: NDArray[Any], plan: Bicubic) -> None:
        """
        Args:
            samples: (H, W, 1 or 3) uint8 or uint16.
        """
        self._samples, self._plan = samples, plan
        self._gray = samples.shape[2] == 1
        self._peak = np.float32(np.iinfo(samples.dtype).max)
        self._rows = (0, 0)
        self._planes: tuple[NDArray[np.float32], int] = (np.empty((0, 0, 0), np.float32), 0)

    def luminance(self, start: int, stop: int) -> NDArray[np.floating]:
        """Rows start..stop of the new size."""
        planes, first = self._source(start, stop)
        return self._plan.rows(planes[0], start, stop, first)

    def write(self, y: Plane, start: int, columns: slice, out: NDArray[Any]) -> None:
        """Sharpened luminance of some rows and columns, with the colour that belongs to it, into (H, W, 1 or 3)."""
        if self._gray:
            result = y_to_gray(y)[None]
        else:
            planes, first = self._source(start, start + len(y))
            chroma = self._plan.rows(planes[1:], start, start + len(y), first)[..., columns]
            result = ycbcr_to_rgb(np.concatenate([y[None], chroma]))
        result *= self._peak
        code_values = np.clip(np.rint(result, out=result), 0, self._peak, out=result).astype(out.dtype)
        for channel, plane in enumerate(code_values):  # many times as fast as all together
            out[start : start + len(y), columns, channel] = plane

    def _source(self, start: int, stop: int) -> tuple[NDArray[np.float32], int]:
        """(C, h, W), the rows that rows start..stop are made of, and the first of them."""
        if self._rows != (start, stop):  # for chroma, the same as for luminance if the image is one band
            first, last = self._plan.source_rows(start, stop)
            planes = self._samples[first:last].transpose(2, 0, 1).astype(np.float32, order="C") / self._peak
            self._planes = gray_to_y(planes) if self._gray else rgb_to_ycbcr(planes), first
            self._rows = (start, stop)
        return self._planes
