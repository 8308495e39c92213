"""How are 16-bit colours read, of which Pillow keeps the high bytes only? Twice: the high bytes, then the low ones.

Pillow's decoders unpack a sample of 16 bits into its more significant byte. Told that the samples lie in the other
byte order, they take the less significant one. So the very code that reads 8-bit pictures, with its checks and its
limits, reads 16-bit ones, and there is no second decoder for strangers' bytes.

Gray with alpha has as many bytes a pixel as 8-bit RGBA, and PNG's filters know bytes only: read as that, it is whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if struct.pack("=H", 1) == b"\1\0" else "L"}
"""By the last letter of Pillow's raw modes: big, little and native."""
GRAY_ALPHA = b"\x10\4"
"""Depth and colour type in the header of a PNG."""
BAND = 256
"""Rows made at a time, so that what they are made from need not be held whole."""


def disguised(png: bytes) -> bytes:
    """A PNG of 16-bit gray and alpha as one of 8-bit RGBA; any other as it is."""
    header = png[12:29]
    if png[24:26] != GRAY_ALPHA or png[29:33] != struct.pack(">L", zlib.crc32(header)):
        return png
    header = header[:12] + b"\x08\6" + header[14:]
    return png[:12] + header + struct.pack(">L", zlib.crc32(header)) + png[33:]


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow, asked for the pixels of this opened file, would cut colours of 16 bits to 8."""
    return image.mode in ("RGB", "RGBA") and any(";16" in _raw_mode(tile) for tile in _tiles(image))


def deep_pixels(image: Image.Image, again: Callable[[], Image.Image]) -> NDArray[np.uint16]:
    """(H, W, 3 | 4) of an opened file whose pixels were not loaded yet.

    Args:
        again: opens the same file once more.
    """
    premultiplied = any("a;" in _raw_mode(tile) for tile in _tiles(image))
    _load(image, _straight)
    pixels = np.empty((image.height, image.width, len(image.getbands())), np.uint16)
    for rows, high in _bands(image):
        np.left_shift(high, 8, out=pixels[rows], dtype=np.uint16)
    other = again()
    _load(other, lambda mode: _straight(mode)[:-1] + OTHER_ORDER[mode[-1]])
    if other.size != image.size:
        raise ValueError("its size changes while it is read")
    for rows, low in _bands(other):
        pixels[rows] |= low
    if premultiplied:
        unmultiply(pixels)
    return pixels


def gray_alpha_pixels(image: Image.Image) -> NDArray[np.uint16]:
    """(H, W, 2) of a loaded picture that was `disguised`."""
    return np.ascontiguousarray(image).view(">u2").astype(np.uint16)


def widened(samples: NDArray[np.uint16], depth: int) -> NDArray[np.uint16]:
    """Samples of 10 or 12 bits as 16 bits, in place: white stays white, and the way back is exact."""
    steps = 2**depth - 1
    for row in samples:  # a picture in 32 bits would take twice its memory
        row[:] = (row.astype(np.uint32) * 65_535 + steps // 2) // steps
    return samples


def with_transparent(pixels: NDArray[Any], value: int | tuple[int, ...]) -> NDArray[np.uint16]:
    """The same gray or RGB with alpha, which is zero where pixels have the one value that is declared transparent."""
    samples = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = samples.shape
    out = np.empty((height, width, channels + 1), np.uint16)
    out[..., :-1] = samples
    out[..., -1] = np.where((samples == np.array(value)).all(axis=2), 0, 65_535)
    return out


def _tiles(image: Image.Image) -> list[Any]:
    """Where the pixels lie in the file, and how."""
    return list(getattr(image, "tile", ()))


def _raw_mode(tile: Any) -> str:
    mode = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
    return mode if isinstance(mode, str) else ""


def _straight(mode: str) -> str:
    """The raw mode that leaves colours as they are, multiplied by alpha or not."""
    return mode.replace("RGBa", "RGBA")


def _load(image: Image.Image, changed: Callable[[str], str]) -> None:
    """Decode an opened file by other raw modes than its own."""
    tiles = []
    for tile in _tiles(image):
        mode = changed(_raw_mode(tile))
        tiles.append(tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:])))
    image.tile = tiles  # type: ignore[attr-defined]  # of an opened file
    image.load()


def _bands(image: Image.Image) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Rows of a loaded picture and where they lie, some at a time: Pillow makes two copies on the way."""
    for start in range(0, image.height, BAND):
        rows = slice(start, min(start + BAND, image.height))
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop)))


def unmultiply(pixels: NDArray[Any]) -> None:
    """Colours that were multiplied by alpha, as they were before, in place; (H, W, 4) of 8 or 16 bits."""
    peak = np.iinfo(pixels.dtype).max
    for start in range(0, len(pixels), BAND):
        band = pixels[start : start + BAND]
        alpha = band[..., 3:].astype(np.uint32)
        whole = (band[..., :3].astype(np.uint32) * peak + alpha // 2) // np.maximum(alpha, 1)
        band[..., :3] = np.where(alpha == 0, 0, np.minimum(whole, peak))
