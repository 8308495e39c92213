"""How is a TIFF of 16-bit colours written, which Pillow cannot hold? In strips, deflated or as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from worker.exif import (
    BITS_PER_SAMPLE,
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    PHOTOMETRIC,
    PREDICTOR,
    SAMPLES_PER_PIXEL,
    STRIP_BYTES,
    STRIP_OFFSETS,
    Tree,
    written_tree,
)

LEVEL = 2
"""ISA-L's, as in `worker.png`."""
STRIP_SIZE_BYTES = 1 << 20
COMPRESSION, ROWS_PER_STRIP, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 259, 278, 282, 283, 296
EXTRA_SAMPLES, PROFILE, XMP = 338, 34_675, 700
PLAIN, DEFLATE, DIFFERENCES, RGB, UNASSOCIATED, INCH = 1, 8, 2, 2, 2, 2
BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7


def encode_tiff(
    pixels: NDArray[np.uint16],
    *,
    compressed: bool = True,
    icc_profile: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """The file (TIFF 6.0, little-endian).

    Args:
        pixels: (H, W, 3 | 4): RGB, and alpha that is not premultiplied.
        dpi: horizontal, vertical.
    """
    height, width, channels = pixels.shape
    rows = max(1, STRIP_SIZE_BYTES // (width * channels * 2))
    out = bytearray(8)
    starts, sizes = [], []
    for strip in _strips(pixels, rows, compressed=compressed):
        starts.append(len(out))
        sizes.append(len(strip))
        out += strip
    tree: Tree = {
        IMAGE_WIDTH: _numbers("L", width),
        IMAGE_HEIGHT: _numbers("L", height),
        BITS_PER_SAMPLE: _numbers("H", *[16] * channels),
        COMPRESSION: _numbers("H", DEFLATE if compressed else PLAIN),
        PHOTOMETRIC: _numbers("H", RGB),
        STRIP_OFFSETS: _numbers("L", *starts),
        SAMPLES_PER_PIXEL: _numbers("H", channels),
        ROWS_PER_STRIP: _numbers("L", rows),
        STRIP_BYTES: _numbers("L", *sizes),
    }
    if compressed:
        tree[PREDICTOR] = _numbers("H", DIFFERENCES)
    if channels == 4:
        tree[EXTRA_SAMPLES] = _numbers("H", UNASSOCIATED)
    if dpi:
        tree[RESOLUTION_UNIT] = _numbers("H", INCH)
        for tag, value in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            tree[tag] = RATIONAL, struct.pack("<LL", round(value * 10_000), 10_000)
    if icc_profile:
        tree[PROFILE] = UNDEFINED, icc_profile
    if xmp:
        tree[XMP] = BYTE, xmp
    out += b"\0" * (len(out) % 2)
    struct.pack_into("<2sHL", out, 0, b"II", 42, len(out))
    return bytes(out) + written_tree(tree, len(out), "<")


def _strips(pixels: NDArray[Any], rows: int, *, compressed: bool) -> Iterator[bytes]:
    for start in range(0, len(pixels), rows):
        strip = np.ascontiguousarray(pixels[start : start + rows], "<u2")
        if compressed:
            differences = strip.copy()
            differences[:, 1:] -= strip[:, :-1]
            yield isal_zlib.compress(differences, LEVEL)
        else:
            yield strip.tobytes()


def _numbers(code: str, *values: int) -> tuple[int, bytes]:
    return {"H": SHORT, "L": LONG}[code], struct.pack(f"<{len(values)}{code}", *values)
