"""How is HEIC read, which Pillow does not know? By libheif, in the optional package pillow-heif.

The container says how a picture is turned, and libheif does it; what EXIF says of that is by the standard only a
description, and is not applied again.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdsr.errors import ImageUnsupported
from worker.deep import unmultiply, widened
from worker.images.carried import read_exif, read_xmp
from worker.images.opening import check_size, reading
from worker.images.picture import Extras, Header, Picture
from worker.isobmff import check_colors, check_frames, largest_size

CHANNELS = {"L": 1, "I": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4}
"""By libheif's modes; "RGBa" has colours that were multiplied by alpha."""


def decode_heic(data: bytes, *, max_pixels: int, on_header: Callable[[Header], None] | None) -> Picture:
    """The primary picture of a file; as `worker.images.decoding.decode`."""
    library = _library()
    check_size(*largest_size(data), max_pixels)
    check_frames(data)
    check_colors(data)
    with reading(data, "HEIC"):
        file = library.HeifFile(io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False)
        image = file[file.primary_index]
        mode, depth = image.mode.partition(";")[0], int(image.info["bit_depth"])
        channels = CHANNELS[mode]
        width, height = image.size
    check_size(width, height, max_pixels)
    if on_header:
        on_header(Header("HEIC", width, height, channels * (2 if depth > 8 else 1), channels in (2, 4)))
    with reading(data, "HEIC"):
        pixels = _pixels(image, depth, channels)
    if mode == "RGBa":
        unmultiply(pixels)
    notes: list[str] = []
    exif, _ = read_exif(image, data, "HEIC", notes)
    if len(file) > 1:
        notes.append(f"{'first' if file.primary_index == 0 else 'the primary one'} of {len(file):,} frames")
    if beside := _auxiliary(image):
        notes.append(f"auxiliary pictures are left out: {', '.join(beside)}")
    profile = image.info.get("icc_profile")
    extras = Extras(icc_profile=profile or None, exif=exif, xmp=read_xmp(image.info.get("xmp"), notes))
    return Picture(pixels, "HEIC", extras, tuple(notes))


def _library() -> Any:
    try:
        import pillow_heif
    except ImportError as exc:
        raise ImageUnsupported(
            "HEIC is read by pillow-heif, which is not installed where this ran; pip install 'vdsr[heif]' there, or "
            "convert the picture"
        ) from exc
    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.DECODE_THREADS = 1  # several pictures are read at a time
    return pillow_heif


def _pixels(image: Any, depth: int, channels: int) -> NDArray[Any]:
    """As in `Picture`."""
    samples = np.frombuffer(image.data, np.uint16 if depth > 8 else np.uint8)  # which decodes, and may change the size
    width, height = image.size
    rows = samples.reshape(height, -1)[:, : width * channels]
    pixels = rows.reshape((height, width, channels) if channels > 1 else (height, width)).copy()
    return widened(pixels, depth) if depth > 8 else pixels


def _auxiliary(image: Any) -> list[str]:
    """What lies beside the picture and is no alpha: depth, gain maps, mattes; by the last words of their names."""
    kinds = image.info.get("aux", {})
    return sorted({kind.rpartition(":")[2] for kind in kinds if "alpha" not in kind and not kind.endswith(":auxid:1")})
