"""How does an image become larger? Bicubic for all of it, and the network's residual for its luminance.

The image is made in bands of rows, each band in tiles, so that memory hardly grows with the image: what is held is
the input and the output in their own depth, and one band in float. The result does not depend on the band or tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from vdsr import checkpoint
from vdsr.alpha import bleed
from vdsr.color import gray_to_y, rgb_to_ycbcr, y_to_gray, ycbcr_to_rgb
from vdsr.device import choose_device, choose_dtype
from vdsr.resize import Bicubic, plan_bicubic
from vdsr.tiling import Span, spans

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

TILE = 256
"""Pixels a side that one pass of the network contributes. A tile's activations then stay below 32 MB, where glibc
would otherwise map and unmap fresh pages for every layer."""
EXACT_LAYERS = 3
"""Hidden layers kept in fp32 in bf16 mode: nearly all of bf16's loss is the rounding of the first activations."""


class Upscaler:
    """Upscales images by VDSR; loads its weights once, and may be used from one thread at a time."""

    def __init__(
        self,
        weights: str | Path | bytes | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int = TILE,
        self_ensemble: bool = False,
    ) -> None:
        """
        Args:
            weights: a safetensors checkpoint or its bytes; None takes the one that ships with the package.
            device: "auto" (CUDA where there is a card, else the CPU), "cpu", "cuda" or "cuda:1".
            precision: "auto" or "fp32"; "bf16" computes the middle layers in bfloat16.
            tile: pixels a side per pass of the network; smaller needs less memory. The result is the same.
            self_ensemble: average the residuals of the picture's eight orientations (Timofte et al., 2016, "Seven
                ways to improve example-based single image super resolution"): better by up to 0.1 dB, eight times
                the work. May be changed at any time.

        Raises:
            CheckpointError: the weights cannot be used.
            DeviceError: the device or precision is not here.
        """
        import torch

        if tile < 1:
            raise ValueError(f"tile is {tile}; it must be at least 1 pixel")
        self.device = choose_device(device)
        self.dtype = choose_dtype(precision)
        self.tile = tile
        self.self_ensemble = self_ensemble
        if isinstance(weights, bytes):
            model, self.identity = checkpoint.parse(weights, "the checkpoint")
        else:
            model, self.identity = checkpoint.load(Path(weights) if weights is not None else checkpoint.SHIPPED)
        self.halo = model.config.halo
        exact = (0, *range(1, EXACT_LAYERS + 1), model.config.depth - 1)
        self._layers = [
            kernel.to(
                self.device,
                torch.float32 if index in exact else self.dtype,
                memory_format=torch.channels_last,
            )
            for index, kernel in enumerate(model.kernels)
        ]

    @overload
    def upscale(
        self, image: NDArray[Any], scale: float = 2, *, on_tile: Callable[[], None] | None = None
    ) -> NDArray[Any]: ...

    @overload
    def upscale(
        self, image: Image.Image, scale: float = 2, *, on_tile: Callable[[], None] | None = None
    ) -> Image.Image: ...

    def upscale(
        self, image: Image.Image | NDArray[Any], scale: float = 2, *, on_tile: Callable[[], None] | None = None
    ) -> Image.Image | NDArray[Any]:
        """The image `scale` times as wide and high.

        Args:
            image: a PIL image (see `vdsr.pillow` for modes), or an array (H, W), (H, W, 2), (H, W, 3) or (H, W, 4)
                of uint8 or uint16: gray, gray and alpha, RGB, RGB and alpha; alpha is not premultiplied.
            scale: at least 1, whole or not; the size is rounded up.
            on_tile: called before each tile; what it raises ends the work, which is how a caller stops it.

        Returns:
            The same kind as `image`, of `vdsr.resize.scaled_size`.

        Raises:
            TypeError: neither a PIL image nor an array.
            ValueError: a scale below 1, or an array of another shape or dtype.
            ImageUnsupported: a PIL mode that has no faithful array.
        """
        if not isinstance(image, np.ndarray):
            if not hasattr(image, "getbands"):
                raise TypeError(f"cannot upscale {type(image).__name__}; give a PIL image or a NumPy array")
            from vdsr.pillow import from_array, to_array

            return from_array(self._upscale_array(to_array(image), scale, on_tile))
        return self._upscale_array(image, scale, on_tile)

    def sharpen(self, y: NDArray[np.floating], *, on_tile: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Luminance at its target size after bicubic, with the residual added: the network over a whole plane.

        Args:
            y: (H, W) float in [0, 1], studio-range luminance / 255.

        Returns:
            (H, W) float32, not clamped.
        """
        height = y.shape[0]
        out = np.empty(y.shape, np.float32)
        for span in spans(height, self.tile, self.halo):
            band = np.ascontiguousarray(y[span.read_start : span.read_stop], np.float32)
            out[span.start : span.stop] = band[span.kept] + self._residual_band(band, span, on_tile)
        return out

    def _upscale_array(self, pixels: NDArray[Any], scale: float, on_tile: Callable[[], None] | None) -> NDArray[Any]:
        _check(pixels, scale)
        plan = plan_bicubic(pixels.shape[:2], scale=scale)
        out = np.empty((*plan.size, *pixels.shape[2:]), pixels.dtype)
        samples = pixels[..., None] if pixels.ndim == 2 else pixels  # (H, W, C)
        target = out[..., None] if out.ndim == 2 else out
        channels = samples.shape[2]
        if channels in (2, 4):
            target[..., -1:] = self._upscale_planes(samples[..., -1:], plan, on_tile)
            samples = _bled(samples)
            channels -= 1
        for span in spans(plan.size[0], self.tile, self.halo):
            target[span.start : span.stop, :, :channels] = self._upscale_band(
                samples[..., :channels], plan, span, on_tile
            )
        return out

    def _upscale_planes(self, alpha: NDArray[Any], plan: Bicubic, on_tile: Callable[[], None] | None) -> NDArray[Any]:
        """Alpha as a gray image; a constant one, as most are, costs nothing and stays exactly what it is."""
        if (alpha == alpha.flat[0]).all():
            return np.full((*plan.size, 1), alpha.flat[0], alpha.dtype)
        bands = [self._upscale_band(alpha, plan, span, on_tile) for span in spans(plan.size[0], self.tile, self.halo)]
        return np.concatenate(bands)

    def _upscale_band(
        self, samples: NDArray[Any], plan: Bicubic, span: Span, on_tile: Callable[[], None] | None
    ) -> NDArray[Any]:
        """Rows span.start..span.stop of the output of (H, W, 1 or 3) samples, in their dtype."""
        first, last = plan.source_rows(span.read_start, span.read_stop)
        peak = np.float32(np.iinfo(samples.dtype).max)
        source = samples[first:last].transpose(2, 0, 1).astype(np.float32) / peak  # (C, h, W) in [0, 1]
        gray = source.shape[0] == 1
        ycbcr = gray_to_y(source) if gray else rgb_to_ycbcr(source)
        y = plan.rows(ycbcr[0], span.read_start, span.read_stop, first)
        sharp = y[span.kept] + self._residual_band(y, span, on_tile)
        if gray:
            result = y_to_gray(sharp)[None]
        else:
            chroma = plan.rows(ycbcr[1:], span.start, span.stop, first)
            result = ycbcr_to_rgb(np.concatenate([sharp[None], chroma]))
        code_values = np.clip(np.round(result * peak), 0, peak)
        return code_values.transpose(1, 2, 0).astype(samples.dtype)

    def _residual_band(
        self, y: NDArray[np.float32], rows: Span, on_tile: Callable[[], None] | None
    ) -> NDArray[np.float32]:
        """The residual of a band's kept rows; `y` is (rows read, W)."""
        import torch

        width = y.shape[1]
        residual = np.empty((rows.stop - rows.start, width), np.float32)
        for columns in spans(width, self.tile, self.halo):
            if on_tile is not None:
                on_tile()
            tile = torch.from_numpy(y[:, columns.read_start : columns.read_stop].copy())[None, None]
            # cuDNN would otherwise round fp32 to TF32's 10 bits
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                result = self._residual(tile.to(self.device))[0, 0].cpu().numpy()
            residual[:, columns.start : columns.stop] = result[rows.kept, columns.kept]
        return residual

    def _residual(self, x: Tensor) -> Tensor:
        """(1, 1, h, w) float32 to the same: once, or the mean over the eight orientations."""
        import torch

        if not self.self_ensemble:
            return self._layers_of(x)
        turned = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
        residuals = [_turned_back(self._layers_of(_turned(x, *way)), *way) for way in turned]
        return torch.stack(residuals).mean(0)

    def _layers_of(self, x: Tensor) -> Tensor:
        """The twenty layers, as `vdsr.model.VDSR.residual`."""
        import torch

        x = x.to(memory_format=torch.channels_last)
        for weight in self._layers[:-1]:
            x = torch.conv2d(x.to(weight.dtype), weight, padding=1).relu_()
        return torch.conv2d(x.to(self._layers[-1].dtype), self._layers[-1], padding=1)


def _turned(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    x = x.rot90(turns, (2, 3))
    return x.flip(3) if mirrored else x


def _turned_back(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    return (x.flip(3) if mirrored else x).rot90(-turns, (2, 3))


def _check(pixels: NDArray[Any], scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"scale is {scale}; it must be 1 or more")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels are {pixels.dtype}; give uint8 or uint16")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (2, 3, 4)) or 0 in pixels.shape:
        raise ValueError(f"shape is {pixels.shape}; give (H, W), (H, W, 2), (H, W, 3) or (H, W, 4), not empty")


def _bled(samples: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C + 1) samples with colour under the transparent pixels."""
    peak = np.iinfo(samples.dtype).max
    scaled = samples.astype(np.float32).transpose(2, 0, 1) / np.float32(peak)
    color = bleed(scaled[:-1], scaled[-1])
    out = samples.copy()
    out[..., :-1] = np.round(color * peak).transpose(1, 2, 0)
    return out
