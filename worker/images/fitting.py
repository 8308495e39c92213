"""What does a format not hold? Asked before any work is done: refusals, and what is left out with a note."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdsr.errors import FormatLimit, ImageTooLarge, ImageUnsupported
from worker.images.picture import Extras, Picture

MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 16_384}
"""Pixels a side. JPEG's own limit is 65,535, but libjpeg ends at 65,500. libavif reads no picture
of more than 16,384 squared."""
DEEP = ("PNG", "TIFF")
"""What holds 16 bits a channel."""
LOSSY_AND_DEEP = ("AVIF", "HEIC")
"""What may have 10 or 12."""
LONGEST_SIDE = 200_000
"""Pixels after scaling, in any format: time and memory of bicubic grow with a side, however few pixels there are."""
MAX_FILE_BYTES = {"TIFF": 2**32, "BMP": 2**32}
"""What 32-bit offsets reach."""
MOST_JPEG_EXIF, MOST_JPEG_XMP, MOST_JPEG_PROFILE = 65_527, 65_400, 255 * 65_519
"""Bytes. EXIF and XMP have one marker each, a profile at most 255."""


def check_output(pixels: NDArray[Any], size: tuple[int, int], image_format: str, *, max_pixels: int) -> None:
    """Whether these pixels, once scaled, could be written at all; asked before any work is done.

    Args:
        pixels: before scaling; only their shape and dtype matter.
        size: height and width after scaling.
        image_format: JPEG, PNG, WEBP, TIFF, BMP or AVIF.
        max_pixels: the limit for the output.

    Raises:
        ImageUnsupported: the format has no alpha, no 16 bits, or no files that large.
        FormatLimit: too wide or high for the format.
        ImageTooLarge: more than `max_pixels`.
    """
    height, width = size
    check_kind(pixels, image_format)
    limit = MAX_SIDE.get(image_format)
    if limit is not None and max(size) > limit:
        raise FormatLimit(image_format, limit, width, height)
    if max(size) > LONGEST_SIDE:
        raise ImageUnsupported(
            f"{width:,} x {height:,} would have a side over {LONGEST_SIDE:,} pixels; cut the picture into pieces"
        )
    if height * width > max_pixels:
        raise ImageTooLarge(width, height, max_pixels, "VDSR_MAX_OUTPUT_PIXELS")
    size_bytes = height * width * math.prod(pixels.shape[2:]) * pixels.dtype.itemsize
    if size_bytes >= MAX_FILE_BYTES.get(image_format, math.inf):
        raise ImageUnsupported(f"{image_format} files end at 4 GiB; use --format png, or a smaller scale")


def check_kind(pixels: NDArray[Any], image_format: str) -> None:
    """
    Raises:
        ImageUnsupported: the format has no alpha or no 16 bits.
    """
    if pixels.dtype == np.uint16 and image_format not in DEEP:
        raise ImageUnsupported(f"{image_format} holds 8 bits per channel, and this picture has 16; use --format png")
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and image_format == "JPEG":
        raise ImageUnsupported("JPEG holds no transparency, and this picture has some; use --format png")


def left_out(pixels: NDArray[Any], extras: Extras, image_format: str) -> tuple[str, ...]:
    """What the source carries and this format does not hold, as notes for the user.

    Args:
        pixels: before scaling; only their shape and dtype matter.
    """
    colored = (image_format == "WEBP" and (pixels.ndim == 2 or pixels.shape[2] == 2)) or (
        pixels.shape[2:] == (2,) and (image_format == "AVIF" or (image_format == "TIFF" and pixels.dtype == np.uint16))
    )
    profile = extras.icc_profile
    lost = {
        "its colour profile": profile
        and (
            image_format == "BMP"
            or (image_format == "JPEG" and len(profile) > MOST_JPEG_PROFILE)
            or (colored and color_profile(extras) is None)
        ),
        "EXIF": extras.exif
        and (image_format == "BMP" or (image_format == "JPEG" and len(extras.exif) > MOST_JPEG_EXIF)),
        "XMP": extras.xmp and (image_format == "BMP" or (image_format == "JPEG" and len(extras.xmp) > MOST_JPEG_XMP)),
        "its resolution": extras.dpi and not extras.exif and image_format in ("WEBP", "AVIF"),
    }
    names = [name for name, gone in lost.items() if gone]
    return (f"{image_format} does not hold {', '.join(names)}: left out",) if names else ()


def fitted(picture: Picture, image_format: str) -> Picture:
    """The picture as this format can hold it, where that costs nothing or is worth a note.

    Opaque alpha goes where there is none. 10 and 12 bits of a lossy format become 8 where there are no more; 16 bits
    of a lossless one never do: `check_output` refuses them.
    """
    pixels, notes = picture.pixels, picture.notes
    if image_format == "JPEG":
        pixels = without_opaque_alpha(pixels)
    if pixels.dtype == np.uint16 and image_format not in DEEP and picture.format in LOSSY_AND_DEEP:
        pixels = _narrowed(pixels)
        notes = (*notes, f"{image_format} holds 8 bits per channel, and the source has more: rounded")
    return replace(picture, pixels=pixels, notes=notes)


def without_opaque_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same pixels, less an alpha channel that hides nothing: what a format without alpha can hold after all."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and (pixels[..., -1] == np.iinfo(pixels.dtype).max).all():
        return pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return pixels


def color_profile(extras: Extras) -> bytes | None:
    """The profile, unless it is one for gray, and gray becomes RGB."""
    profile = extras.icc_profile
    return None if profile and profile[16:20] == b"GRAY" else profile


def _narrowed(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """16 bits rounded to 8, by the row: in one piece it would take four times the memory."""
    out = np.empty(pixels.shape, np.uint8)
    for row, wide in zip(out, pixels, strict=True):
        row[:] = (wide.astype(np.uint32) + 128) // 257
    return out
