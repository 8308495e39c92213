"""What does a file carry beside its pixels, as Pillow found it, and how is that to be passed on?"""

from __future__ import annotations

from typing import Any

from PIL import Image

from worker.exif import DamagedExif, exif_of_tiff, upright_exif
from worker.xmp import DamagedXmp, upright_xmp

TIFF_COMPRESSIONS = {
    "raw": "raw",
    "packbits": "packbits",
    "tiff_lzw": "tiff_lzw",
    "tiff_adobe_deflate": "tiff_adobe_deflate",
    "tiff_deflate": "tiff_adobe_deflate",
}
"""Lossless compressions of sources, by Pillow's names -> what is written for them."""


def read_exif(image: Image.Image, data: bytes, image_format: str, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF as in `Extras`, and how the pixels are still to be turned."""
    try:
        if image_format == "TIFF":  # Pillow has turned it already
            exif = exif_of_tiff(data)
            return exif and upright_exif(exif)[0], 1
        exif = _embedded_exif(image)
        return upright_exif(exif) if exif else (None, 1)
    except DamagedExif:
        notes.append("EXIF was damaged and is left out")
        return None, 1


def read_xmp(xmp: Any, notes: list[str]) -> bytes | None:
    """XMP as in `Extras`, of what Pillow found."""
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    if not isinstance(xmp, bytes) or not xmp:
        return None
    try:
        return upright_xmp(xmp)
    except DamagedXmp:
        notes.append("XMP was damaged and is left out")
        return None


def read_compression(image: Image.Image, image_format: str, notes: list[str]) -> str | None:
    """A TIFF's lossless compression, as in `Extras`."""
    if image_format != "TIFF":
        return None
    found = image.info["compression"]
    kept = TIFF_COMPRESSIONS.get(found)
    if kept is None:
        notes.append(f"{found} compression becomes deflate where the output is TIFF")
    return kept


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Only what every format can hold: some files say 0 or nan, and Pillow says 1 for a TIFF that says nothing."""
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return (x, y) if 1 < x <= 65_535 and 1 < y <= 65_535 else None


def _embedded_exif(image: Image.Image) -> bytes | None:
    """The TIFF structure, as it is in the file."""
    exif = image.info.get("exif")
    text = image.info.get("Raw profile type exif")  # ImageMagick's way, before PNG had a chunk for it
    if exif is None and isinstance(text, str):
        try:
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError as exc:
            raise DamagedExif from exc
    if not isinstance(exif, bytes):
        return None
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    return exif or None
