"""How does a file become a picture? Sniffed, guarded, opened, decoded, turned upright."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdsr.errors import ImageEmpty
from vdsr.pillow import SIXTEEN, to_array
from worker.cmyk import NOTE as INKS_NOTE
from worker.cmyk import srgb_pixels, to_srgb
from worker.deep import GRAY_ALPHA, deep_pixels, gray_alpha_pixels, is_deep, with_transparent
from worker.exif import PHOTOMETRIC, first_tags, numbers
from worker.images.carried import read_compression, read_dpi, read_exif, read_xmp
from worker.images.deep_avif import avif_pixels, can_widen
from worker.images.frames import note_frames
from worker.images.guards import channels_of_tiff, is_lossless
from worker.images.heic import decode_heic
from worker.images.opening import open_picture, reading
from worker.images.picture import Extras, Header, Picture
from worker.images.sniffing import sniff
from worker.isobmff import depth

CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3}
"""By Pillow's modes, where it is not up to 4."""


def decode(data: bytes, *, max_pixels: int, on_header: Callable[[Header], None] | None = None) -> Picture:
    """The first picture in a file's bytes.

    Args:
        on_header: called before pixels are decoded; may wait, and what it raises ends the decoding.

    Raises:
        ImageError: by one of its subclasses; the bytes may be anything.
    """
    if not data:
        raise ImageEmpty
    image_format = sniff(data)
    if image_format == "HEIC":
        return decode_heic(data, max_pixels=max_pixels, on_header=on_header)
    image = open_picture(data, image_format, max_pixels)
    notes = ["1-bit became 8-bit gray"] if image.mode == "1" else []
    deep = is_deep(image)
    bits = depth(data) if image_format == "AVIF" else 8
    wide = bits > 8 and can_widen()
    pixels: NDArray[Any]
    inks = to_srgb(image.info.get("icc_profile")) if image.mode == "CMYK" else None
    if on_header:
        on_header(_header(image, image_format, deep=deep or wide))
    xmp = image.info.get("xmp")  # loading a TIFF cuts some of it out, and loading a PNG may bring it
    transparent = image.info.pop("transparency", None) if deep or image.mode in SIXTEEN else None
    if deep:
        with reading(data, image_format):
            pixels = deep_pixels(image, lambda: open_picture(data, image_format, max_pixels))
    elif wide:
        with reading(data, image_format):
            pixels = avif_pixels(data, image.size, bits)
    else:
        with reading(data, image_format):
            image.load()
        pixels = srgb_pixels(image, inks) if inks else _pixels(image, data, image_format)
    if transparent is not None:
        pixels = with_transparent(pixels, transparent)
    exif, orientation = read_exif(image, data, image_format, notes)
    compression = read_compression(image, image_format, notes)
    note_frames(image, data, image_format, notes)
    if image_format == "TIFF" and channels_of_tiff(data) > len(image.getbands()):
        notes.append("a channel beside the colours that is no transparency is left out")
    if inks:
        notes.append(INKS_NOTE)
    if bits > 8 and not wide:
        notes.append(f"{bits} bits per channel became 8; a worker with 'vdsr[heif]' installed keeps them")
    profile = None if inks else image.info.get("icc_profile")
    extras = Extras(
        icc_profile=profile if profile and isinstance(profile, bytes) else None,
        exif=exif,
        xmp=read_xmp(xmp or image.info.get("xmp"), notes),
        dpi=read_dpi(image),
        lossless=image_format == "WEBP" and is_lossless(data),
        compression=compression,
    )
    return Picture(_upright(pixels, orientation), image_format, extras, tuple(notes))


def _header(image: Image.Image, image_format: str, *, deep: bool) -> Header:
    added = image.mode in ("1", "L", "RGB", *SIXTEEN) and image.has_transparency_data
    sample_bytes = 2 if deep or image.mode in SIXTEEN else 1
    pixel_bytes = sample_bytes * (CHANNELS.get(image.mode, 4) + added)
    return Header(image_format, *image.size, pixel_bytes, added or image.has_transparency_data)


def _pixels(image: Image.Image, data: bytes, image_format: str) -> NDArray[Any]:
    """As in `Picture`, but not turned; with what Pillow leaves undone."""
    if image_format == "PNG" and image.mode in ("1", "L") and data[24] < 8 and "transparency" in image.info:
        steps = 2 ** data[24] - 1
        if image.info["transparency"] <= steps:  # Pillow widens samples to 8 bits, but not always this one
            image.info["transparency"] *= 255 // steps
    if image_format == "PNG" and data[24:26] == GRAY_ALPHA:
        return gray_alpha_pixels(image)
    pixels = to_array(image)
    if (
        image_format == "TIFF"
        and pixels.dtype == np.uint16
        and numbers(data, first_tags(data).get(PHOTOMETRIC)) == (0,)
    ):
        return ~pixels  # white is zero; Pillow turns that round for 8 bits only
    return pixels


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels as EXIF wants them to be seen; orientation 1 to 8."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
