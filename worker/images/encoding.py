"""How does a picture become a file? By one writer a format, each with the effort that pays."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdsr.pillow import from_array
from worker.exif import PREDICTOR, sized_exif, tiff_with_exif
from worker.images.fitting import MOST_JPEG_EXIF, MOST_JPEG_PROFILE, MOST_JPEG_XMP, check_kind, color_profile
from worker.images.picture import Extras
from worker.png import encode_png
from worker.tiff import XMP, encode_tiff
from worker.xmp import sized_xmp

XMP_SLACK = 64
"""Bytes by which XMP may grow when it is told the new size."""
JPEG_QUALITY = 95
WEBP_QUALITY = 90
FULL_CHROMA_QUALITY = 90
"""From here up, JPEG keeps colour at full size. On photographs upscaled x2, at quality 95, that costs 23% more bytes
and gains 1.7 dB (47.5 against 45.7). Who asks for less wants small files: colour is then halved both ways."""
WEBP_METHOD = 1
"""Effort. For 4 MP of photographs upscaled x2, on one core, lossy: 159 ms, 0.65 MB; at 4, Pillow's default: 377 ms,
0.61 MB."""
WEBP_LOSSLESS_EFFORT = 0
"""The same 4 MP: 706 ms, 3.3 MB; at 50: 1,197 ms, 3.3 MB."""
AVIF_QUALITY = 80
AVIF_SPEED = 8
"""Of 0 to 10. 4 MP of blocks of noise, on one core: 1.1 s, 0.30 MB; at 6, Pillow's default, 15 s, 0.29 MB; at 9, 1.4 s
and 1.8 MB."""
TIFF_DIFFERENCES = 2
"""The predictor for deflate and LZW. The same 4 MP: deflate 5.8 MB, 9.1 without; LZW 6.2 MB, 12.7 without."""


def encode(pixels: NDArray[Any], image_format: str, extras: Extras, *, quality: int | None) -> bytes:
    """A file's bytes; its EXIF is told the new size.

    Args:
        pixels: of a shape and dtype that `decode` could have returned.
        image_format: JPEG, PNG, WEBP, TIFF, BMP or AVIF.
        extras: what `decode` found in the source; the format leaves out what it does not hold.
        quality: 0 to 100 for JPEG, lossy WebP and AVIF; None stands for 95, 90 and 80.

    Raises:
        ImageUnsupported: the format has no alpha or no 16 bits.
    """
    check_kind(pixels, image_format)
    return WRITERS[image_format](pixels, extras, quality)


def _jpeg(pixels: NDArray[Any], extras: Extras, quality: int | None) -> bytes:
    quality = JPEG_QUALITY if quality is None else quality
    exif, xmp, profile = _exif_block(pixels, extras), _sized_xmp(pixels, extras), extras.icc_profile
    options = {
        "quality": quality,
        "subsampling": "4:4:4" if quality >= FULL_CHROMA_QUALITY else "4:2:0",
        "exif": exif if exif and len(exif) <= MOST_JPEG_EXIF + 6 else None,
        "xmp": xmp if xmp and len(xmp) <= MOST_JPEG_XMP + XMP_SLACK else None,
        "icc_profile": profile if profile and len(profile) <= MOST_JPEG_PROFILE else None,
        "dpi": extras.dpi,
    }
    return _saved(from_array(pixels), "JPEG", options)


def _png(pixels: NDArray[Any], extras: Extras, _quality: int | None) -> bytes:
    exif, xmp = _sized_exif(pixels, extras), _sized_xmp(pixels, extras)
    return encode_png(pixels, icc_profile=extras.icc_profile, exif=exif, xmp=xmp, dpi=extras.dpi)


def _webp(pixels: NDArray[Any], extras: Extras, quality: int | None) -> bytes:
    options = {
        "lossless": extras.lossless,
        "quality": WEBP_LOSSLESS_EFFORT if extras.lossless else WEBP_QUALITY if quality is None else quality,
        "exact": extras.lossless,  # the colour under transparent pixels too
        "method": WEBP_METHOD,
        "exif": _exif_block(pixels, extras),
        "xmp": _sized_xmp(pixels, extras),
        "icc_profile": color_profile(extras),
    }
    return _saved(from_array(pixels), "WEBP", options)


def _tiff(pixels: NDArray[Any], extras: Extras, _quality: int | None) -> bytes:
    compression = extras.compression or "tiff_adobe_deflate"
    xmp = _sized_xmp(pixels, extras)
    info: dict[int, Any] = {XMP: xmp} if xmp else {}
    if compression.endswith(("deflate", "lzw")):
        info[PREDICTOR] = TIFF_DIFFERENCES
    options = {
        "compression": compression,
        "tiffinfo": info,
        "icc_profile": extras.icc_profile,
        "dpi": extras.dpi,
    }
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        tiff = encode_tiff(
            pixels if pixels.shape[2] > 2 else pixels[..., [0, 0, 0, 1]],
            compressed=compression != "raw",
            icc_profile=color_profile(extras) if pixels.shape[2] == 2 else extras.icc_profile,
            xmp=xmp,
            dpi=extras.dpi,
        )
    else:
        tiff = _saved(from_array(pixels), "TIFF", options)
    exif = _sized_exif(pixels, extras)
    return tiff_with_exif(tiff, exif) if exif else tiff


def _bmp(pixels: NDArray[Any], extras: Extras, _quality: int | None) -> bytes:
    dpi = extras.dpi or (0, 0)  # without, Pillow would claim 96
    image = from_array(pixels)
    if image.mode in ("LA", "RGBA"):
        return _bmp_with_alpha(image.convert("RGBA"), dpi)
    return _saved(image, "BMP", {"dpi": dpi})


def _avif(pixels: NDArray[Any], extras: Extras, quality: int | None) -> bytes:
    image = from_array(pixels)
    options = {
        "quality": AVIF_QUALITY if quality is None else quality,
        "subsampling": None if image.mode == "L" else "4:4:4",
        "speed": AVIF_SPEED,
        "max_threads": 1,  # several pictures are written at a time
        "exif": _sized_exif(pixels, extras),
        "xmp": _sized_xmp(pixels, extras),
        "icc_profile": color_profile(extras) if image.mode == "LA" else extras.icc_profile,
    }
    return _saved(image, "AVIF", options)


WRITERS = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff, "BMP": _bmp, "AVIF": _avif}


def _saved(image: Image.Image, image_format: str, options: dict[str, Any]) -> bytes:
    """Pillow's own writing; an option of None is one not given."""
    file = io.BytesIO()
    image.save(file, image_format, **{name: value for name, value in options.items() if value is not None})
    return file.getvalue()


def _exif_block(pixels: NDArray[Any], extras: Extras) -> bytes | None:
    exif = _sized_exif(pixels, extras)
    return b"Exif\0\0" + exif if exif else None


def _sized_exif(pixels: NDArray[Any], extras: Extras) -> bytes | None:
    """EXIF that tells the size of these pixels."""
    height, width = pixels.shape[:2]
    return sized_exif(extras.exif, width, height) if extras.exif else None


def _sized_xmp(pixels: NDArray[Any], extras: Extras) -> bytes | None:
    """XMP that tells the size of these pixels."""
    height, width = pixels.shape[:2]
    return sized_xmp(extras.xmp, width, height) if extras.xmp else None


def _bmp_with_alpha(image: Image.Image, dpi: tuple[float, float]) -> bytes:
    """A version 4 header, which names an alpha channel; Pillow writes one without (python-pillow/Pillow#8594)."""
    rows = image.tobytes("raw", "BGRA", 0, -1)  # from the bottom up
    metres = (round(value / 0.0254) for value in dpi)
    start = 14 + 108
    head = struct.pack("<2sLHHL", b"BM", start + len(rows), 0, 0, start)
    info = struct.pack("<LllHHLLllLL", 108, *image.size, 1, 32, 3, len(rows), *metres, 0, 0)
    masks = struct.pack("<4L4s48x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs")
    return head + info + masks + rows
