"""Which format do the first bytes of a file announce?"""

from __future__ import annotations

from vdsr.errors import ImageTruncated, ImageUnreadable
from worker.formats import FORMATS
from worker.isobmff import is_avif, is_heic

MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
STRANGERS = {
    b"<!doctype": "an HTML page; perhaps an error message was saved as a picture",
    b"<html": "an HTML page; perhaps an error message was saved as a picture",
    b"<?xml": "XML or SVG",
    b"<svg": "SVG",
    b"%pdf": "PDF",
    b"pk\3\4": "a ZIP archive",
    b"\x1f\x8b": "gzip",
    b"8bps": "a Photoshop document",
    b"\0\0\1\0": "an icon",
    b"\0\0\0\x0cjp  ": "JPEG 2000",
    b"\0\0\0\x0cjxl ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\0\0\0\0\0": "nothing but zeros; perhaps a copy failed",
}
"""How some other files begin, in lower case."""


def sniff(data: bytes) -> str:
    """The format that the first bytes announce."""
    for magic, image_format in MAGIC.items():
        if data.startswith(magic) and (image_format != "WEBP" or data[8:12] == b"WEBP"):
            return image_format
    if is_avif(data):
        return "AVIF"
    if is_heic(data):
        return "HEIC"
    if any(magic.startswith(data) for magic in MAGIC):
        raise ImageTruncated(f"there are only {len(data)} bytes; copy the file again from its source")
    start = data[:32].lstrip().lower()
    seen = [f", like {name}" for magic, name in STRANGERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        seen = [", like a video"]
    raise ImageUnreadable(
        f"this is none of {', '.join(FORMATS)}: it begins with {data[:8]!r}{''.join(seen)}; convert it or leave it out"
    )
