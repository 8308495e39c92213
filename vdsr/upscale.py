"""How does an image become larger? Bicubic for all of it, and the network's residual for its luminance.

The image is made in bands of rows, so that memory hardly grows with the image: what is held is the input and the
output in their own depth, and some rows in float. The result does not depend on the pieces.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from vdsr import checkpoint
from vdsr.alpha import bled, is_opaque
from vdsr.banded import BLOCK
from vdsr.device import choose_device
from vdsr.engine import Bands, Batching, Picturing, Plane, Stream, make_engine, whole
from vdsr.interpolated import Interpolated
from vdsr.resize import Bicubic, plan_bicubic
from vdsr.tiling import spans

if TYPE_CHECKING:
    from PIL import Image

BAND_PIXELS = 1 << 18
"""Of the output, made at a time: a few MB in float, which a small image fits into whole."""
STRIP = 4096
"""Most columns that go through the network at a time: in whole halos, so that its tiles lie as in the whole image.
Memory grows with them (by 11 KB a column in our compiled code), and the halo between two is computed twice."""
ENSEMBLE_BAND = 2048
"""Rows that are turned at a time by the self-ensemble: the halo costs two in a hundred."""


class Upscaler:
    """Upscales images by VDSR; loads its weights once, and may be used from one thread at a time."""

    def __init__(
        self,
        weights: str | Path | bytes | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int = 0,
        engine: str = "auto",
        self_ensemble: bool = False,
    ) -> None:
        """
        Args:
            weights: a safetensors checkpoint or its bytes; None takes the one that ships with the package.
            device: "auto" (CUDA where there is a card, else the CPU), "cpu", "cuda" or "cuda:1".
            precision: "auto" (bf16 on cards that have it and on CPUs with AMX, 16-bit integers on other CPUs, where
                that costs no visible quality; else fp32), "fp32", or "bf16": the middle layers in bfloat16.
            tile: pixels a side per pass where torch computes, 0 what suits the device; smaller needs less memory.
                The result is the same.
            engine: "auto", or "native" or "torch": what computes the network (`vdsr.engine`).
            self_ensemble: average the residuals of the picture's eight orientations (Timofte et al., 2016, "Seven
                ways to improve example-based single image super resolution"): better by up to 0.1 dB, eight times
                the work. May be changed at any time.

        Raises:
            CheckpointError: the weights cannot be used.
            DeviceError: the device, precision or engine is not here.
        """
        if tile < 0:
            raise ValueError(f"tile is {tile}; it must be at least 1 pixel, or 0 for what suits the device")
        self.device = choose_device(device)
        self.self_ensemble = self_ensemble
        if isinstance(weights, bytes):
            model, self.identity = checkpoint.parse(weights, "the checkpoint")
        else:
            model, self.identity = checkpoint.load(Path(weights) if weights is not None else checkpoint.SHIPPED)
        self.network_s = 0.0
        """Seconds that the network has computed since this was made; on a card, all of the work on pictures."""
        self._field = model.config.halo
        self.engine = make_engine(model, self.device, precision, tile, engine)

    @property
    def redone(self) -> int:
        """Tiles so far that were not finite in bf16 and were computed again in fp32."""
        return self.engine.redone

    @overload
    def upscale(
        self, image: NDArray[Any], scale: float = 2, *, on_tile: Callable[[], None] | None = None
    ) -> NDArray[Any]: ...

    @overload
    def upscale(
        self, image: Image.Image | str | Path, scale: float = 2, *, on_tile: Callable[[], None] | None = None
    ) -> Image.Image: ...

    def upscale(
        self,
        image: Image.Image | str | Path | NDArray[Any],
        scale: float = 2,
        *,
        on_tile: Callable[[], None] | None = None,
    ) -> Image.Image | NDArray[Any]:
        """The image `scale` times as wide and high.

        Args:
            image: a PIL image (see `vdsr.pillow` for modes), the path of a file with one, which is turned upright,
                or an array (H, W), (H, W, 2), (H, W, 3) or (H, W, 4) of uint8 or uint16: gray, gray and alpha, RGB,
                RGB and alpha; alpha is not premultiplied.
            scale: at least 1, whole or not; the size is rounded up.
            on_tile: called before each tile; what it raises ends the work, which is how a caller stops it.

        Returns:
            An array for an array, else a PIL image with the colour profile of the given one; of
            `vdsr.resize.scaled_size`.

        Raises:
            TypeError: neither a PIL image, a path nor an array.
            ValueError: a scale below 1, or an array of another shape or dtype.
            OSError: no such file, or it may not be read.
            ImageError: the file is no picture or damaged, or (ImageUnsupported) its mode has no faithful array.
        """
        if isinstance(image, np.ndarray):
            return self._upscale_array(image, scale, on_tile)
        from vdsr.pillow import from_array, read_image, to_array

        if isinstance(image, str | Path):
            image = read_image(image)
        if not hasattr(image, "getbands"):
            raise TypeError(f"cannot upscale {type(image).__name__}; give a PIL image, a path or a NumPy array")
        result = from_array(self._upscale_array(to_array(image), scale, on_tile))
        if profile := image.info.get("icc_profile"):
            result.info["icc_profile"] = profile  # Pillow's save writes it
        return result

    def sharpen(self, y: NDArray[np.floating], *, on_tile: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Luminance at its target size after bicubic, with the residual added: the network over a whole plane.

        Args:
            y: (H, W) float in [0, 1], studio-range luminance / 255.

        Returns:
            (H, W) float32, not clamped.
        """
        out = np.empty(y.shape, np.float32)
        height, width = y.shape
        for start, columns, rows in self._sharpened(lambda start, stop: y[start:stop], height, width, on_tile):
            out[start : start + len(rows), columns] = rows
        return out

    def sharpen_alike(
        self, planes: NDArray[np.float32], *, on_tile: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        """As `sharpen` for each of (N, H, W); where the device gains by it, in one pass."""
        if len(planes) == 1 or not isinstance(self.engine, Batching) or self.self_ensemble:
            return np.stack([self.sharpen(plane, on_tile=on_tile) for plane in planes])
        began = time.perf_counter()
        sharpened: NDArray[np.float32] = planes + self.engine.residuals(planes, on_tile or _nothing)
        self.network_s += time.perf_counter() - began
        return sharpened

    def _upscale_array(self, pixels: NDArray[Any], scale: float, on_tile: Callable[[], None] | None) -> NDArray[Any]:
        _check(pixels, scale)
        plan = plan_bicubic(pixels.shape[:2], scale=scale)
        out = np.empty((*plan.size, *pixels.shape[2:]), pixels.dtype)
        samples, target = _with_channels(pixels), _with_channels(out)
        channels = samples.shape[2]
        if channels in (2, 4):
            self._upscale_alpha(samples[..., -1:], plan, target[..., -1:], on_tile)
            samples = bled(samples)
            channels -= 1
        self._upscale_color(samples[..., :channels], plan, target[..., :channels], on_tile)
        return out

    def _upscale_alpha(
        self, alpha: NDArray[Any], plan: Bicubic, out: NDArray[Any], on_tile: Callable[[], None] | None
    ) -> None:
        """Alpha as a gray image; a constant one, as most are, costs nothing and stays exactly what it is."""
        if (alpha == alpha.flat[0]).all():
            out[:] = alpha.flat[0]
        else:
            self._upscale_color(alpha, plan, out, on_tile)

    def _upscale_color(
        self, samples: NDArray[Any], plan: Bicubic, out: NDArray[Any], on_tile: Callable[[], None] | None
    ) -> None:
        """(H, W, 1 or 3) samples to all of `out`, in their dtype."""
        if not self.self_ensemble and isinstance(self.engine, Picturing) and self.engine.makes_pictures:
            began = time.perf_counter()
            self.engine.pictures([samples], plan, [out], on_tile or _nothing)
            self.network_s += time.perf_counter() - began
            return
        picture = Interpolated(samples, plan)
        for start, columns, y in self._sharpened(picture.luminance, *plan.size, on_tile):
            picture.write(y, start, columns, out)

    def _sharpened(
        self,
        luminance: Callable[[int, int], NDArray[np.floating]],
        height: int,
        width: int,
        on_tile: Callable[[], None] | None,
    ) -> Iterator[tuple[int, slice, Plane]]:
        """Luminance with the residual added: first row, columns, (rows, columns); together all of (height, width).

        Args:
            luminance: gives rows start..stop of (height, width).
        """
        band = max(BLOCK, BAND_PIXELS // width // BLOCK * BLOCK)
        halo = self.engine.halo
        unit = max(1, halo)  # a strip begins at a multiple of it
        for strip in spans(width, max(1, STRIP // unit) * unit, halo):
            stream = self._stream(height, strip.read_stop - strip.read_start, on_tile or _nothing)
            held = np.empty((0, strip.read_stop - strip.read_start), np.float32)  # rows whose residual is to come
            given = 0
            for start in range(0, height, band):
                rows = luminance(start, min(start + band, height))[:, strip.read_start : strip.read_stop]
                rows = np.ascontiguousarray(rows, np.float32)
                began = time.perf_counter()
                residual = stream.push(rows)
                self.network_s += time.perf_counter() - began
                held = np.concatenate([held, rows])
                if len(residual):
                    yield given, slice(strip.start, strip.stop), (held[: len(residual)] + residual)[:, strip.kept]
                held = held[len(residual) :]
                given += len(residual)
            del stream  # its memory, before the next one's

    def _stream(self, height: int, width: int, on_tile: Callable[[], None]) -> Stream:
        """Once through the network, or the mean over the eight orientations."""
        if not self.self_ensemble:
            return self.engine.stream(height, width, on_tile)

        def mean(plane: Plane) -> Plane:
            total: Plane = np.zeros_like(plane)
            for turns in range(4):
                for mirrored in (False, True):
                    turned = np.ascontiguousarray(_turned(plane, turns, mirrored))
                    total += _turned_back(whole(self.engine, turned, on_tile), turns, mirrored)
            return total * np.float32(1 / 8)

        return Bands(mean, height, ENSEMBLE_BAND, self._field)


class SmallPicture:
    """An opaque picture of up to BAND_PIXELS around the network: interpolated before it, finished behind it.

    `finish` of what `Upscaler.sharpen` or `sharpen_alike` makes of `y` gives the bits of `Upscaler.upscale`. Other
    threads may do both, while the network computes other planes.
    """

    def __init__(self, pixels: NDArray[Any], scale: float) -> None:
        """
        Args:
            pixels: (H, W) or (H, W, 3) uint8 or uint16.

        Raises:
            ValueError: another shape or dtype, or a scale below 1.
        """
        _check(pixels, scale)
        if not is_opaque(pixels):
            raise ValueError(f"shape is {pixels.shape}; give (H, W) or (H, W, 3), without alpha")
        plan = plan_bicubic(pixels.shape[:2], scale=scale)
        self._picture = Interpolated(_with_channels(pixels), plan)
        self._shape, self._dtype = (*plan.size, *pixels.shape[2:]), pixels.dtype
        self.y: Plane = np.ascontiguousarray(self._picture.luminance(0, plan.size[0]), np.float32)
        """Luminance of the new size."""

    def finish(self, sharpened: Plane) -> NDArray[Any]:
        """The picture, of luminance to which the residual was added."""
        out = np.empty(self._shape, self._dtype)
        self._picture.write(sharpened, 0, slice(None), _with_channels(out))
        return out


def _turned(plane: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    plane = np.rot90(plane, turns)
    return plane[:, ::-1] if mirrored else plane


def _turned_back(plane: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    return np.rot90(plane[:, ::-1] if mirrored else plane, -turns)


def _with_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C), the same memory."""
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _nothing() -> None:
    pass


def _check(pixels: NDArray[Any], scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"scale is {scale}; it must be 1 or more")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels are {pixels.dtype}; give uint8 or uint16")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (2, 3, 4)) or 0 in pixels.shape:
        raise ValueError(f"shape is {pixels.shape}; give (H, W), (H, W, 2), (H, W, 3) or (H, W, 4), not empty")
