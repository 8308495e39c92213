"""Which picture formats are read and written, and by what names do files and options call them?

Nothing heavy is imported here: the command line lists and names files without Pillow.
"""

from __future__ import annotations

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIC")
"""What is read. All but GIF and HEIC are written too."""

IMAGE_SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIC",
    ".heif": "HEIC",
    ".hif": "HEIC",
}
"""Suffix, in lower case -> the format it promises. A listing goes by it; decoding goes by the bytes."""

SUFFIX = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "AVIF": ".avif",
    "HEIC": ".heic",
}
"""Format -> the suffix of a file that we name ourselves."""

REQUESTS = ("same", "jpeg", "png", "webp", "tiff", "bmp", "avif")
"""What `--format` may say."""


METADATA = ("keep", "strip", "copyright")
"""What `--metadata` may say."""


def output_format(picture_format: str, requested: str) -> str:
    """The format to write: the requested one, or the picture's own; a GIF or a HEIC becomes a PNG.

    GIF's 256 colours cannot hold an upscaled picture. HEIC is not written here, and may have alpha or more than 8 bits.

    Raises:
        ValueError: `requested` is none of REQUESTS.
    """
    if requested not in REQUESTS:
        raise ValueError(f"there is no output format {requested!r}; use one of {', '.join(REQUESTS)}")
    if requested != "same":
        return requested.upper()
    return "PNG" if picture_format in ("GIF", "HEIC") else picture_format
