"""How does torch compute an image? Tile by tile; the reference, and the way on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from vdsr.engine import Bands, Plane, Stream
from vdsr.tiling import spans

if TYPE_CHECKING:
    from torch import Tensor

    from vdsr.model import VDSR

EXACT_LAYERS = 3
"""Hidden layers kept in fp32 in bf16 mode: nearly all of bf16's loss is the rounding of the first activations."""


class TorchEngine:
    """The twenty layers, one after the other over a tile."""

    def __init__(self, model: VDSR, device: torch.device, dtype: torch.dtype, tile: int) -> None:
        self.device, self.tile, self.halo = device, tile, model.config.halo
        self.name = f"torch {device} {'fp32' if dtype == torch.float32 else 'bf16'}"
        self.exact = dtype == torch.float32
        exact = (0, *range(1, EXACT_LAYERS + 1), model.config.depth - 1)
        self._layers = [
            kernel.detach().to(device, torch.float32 if index in exact else dtype, memory_format=torch.channels_last)
            for index, kernel in enumerate(model.kernels)
        ]

    def stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """As `Engine`."""

        def band(plane: Plane) -> Plane:
            residual = np.empty_like(plane)
            for columns in spans(width, self.tile, self.halo):
                on_tile()
                tile = self._tile(plane[:, columns.read_start : columns.read_stop])
                residual[:, columns.start : columns.stop] = tile[:, columns.kept]
            return residual

        return Bands(band, height, self.tile, self.halo)

    def _tile(self, tile: Plane) -> Plane:
        x = torch.from_numpy(np.ascontiguousarray(tile))[None, None].to(self.device)
        # cuDNN would otherwise round fp32 to TF32's 10 bits
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            residual: Plane = self._residual(x)[0, 0].cpu().numpy()
        return residual

    def _residual(self, x: Tensor) -> Tensor:
        """The twenty layers, as `vdsr.model.VDSR.residual`."""
        x = x.to(memory_format=torch.channels_last)
        for weight in self._layers[:-1]:
            x = torch.conv2d(x.to(weight.dtype), weight, padding=1).relu_()
        return torch.conv2d(x.to(self._layers[-1].dtype), self._layers[-1], padding=1)
