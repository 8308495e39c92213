"""How is a file handed to Pillow, and what do its errors mean? Every one of them ends as the ImageError that it is."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from vdsr.errors import ImageTooLarge, ImageTruncated, ImageUnreadable
from worker.deep import disguised
from worker.exif import is_bomb
from worker.images.guards import allocated_size, check_png, check_tiff, checked_jpeg, ends_early, webp_size
from worker.isobmff import check_colors, check_frames, largest_size

DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged bytes. Not Exception: Celery's time limit, which may strike there, is one too. Nor
MemoryError: that is this machine's shortage."""


def open_picture(data: bytes, image_format: str, max_pixels: int) -> Image.Image:
    """The picture with its header read, and no pixels."""
    own_exif = b""
    if image_format == "TIFF":
        check_tiff(data)
    elif image_format == "PNG":
        check_png(data)
    elif image_format == "JPEG":
        own_exif = checked_jpeg(data)
    elif image_format == "AVIF":
        check_frames(data)
        check_colors(data)
    check_size(*allocated_size(data, image_format), max_pixels)
    # Ours is the limit, for the whole process: Pillow's would refuse what ours lets pass, and up to twice its value
    # it is a mere warning.
    Image.MAX_IMAGE_PIXELS = None
    with reading(data, image_format):
        try:
            if own_exif and is_bomb(own_exif):
                raise ValueError("its EXIF would fill the memory")
            known = disguised(data) if image_format == "PNG" else data
            image = Image.open(io.BytesIO(known), formats=[image_format])
        except DAMAGE:
            # Pillow looks for a JPEG's resolution in its EXIF, and may trip over it
            without = data.replace(b"Exif\0\0", b"exif\0\0")
            if image_format != "JPEG" or without == data:
                raise
            image = Image.open(io.BytesIO(without), formats=[image_format])
            image.info["exif"] = b"damaged"
    check_size(*image.size, max_pixels)
    return image


@contextmanager
def reading(data: bytes, image_format: str) -> Iterator[None]:
    """Around Pillow's own calls, and nothing else: what they raise, as the ImageError that it is."""
    try:
        yield
    except MemoryError as exc:
        raise _shortage(data, image_format) from exc
    except DAMAGE as exc:
        if image_format in ("WEBP", "AVIF", "HEIC") and not _has_memory(data, image_format):
            raise _shortage(data, image_format) from exc
        if "truncated" in str(exc).lower() or ends_early(data, image_format):
            raise ImageTruncated(
                f"this {image_format} of {len(data):,} bytes ends before its pixels do; copy it again from its source"
            ) from exc
        what = "its header makes no sense" if isinstance(exc, UnidentifiedImageError) else str(exc)
        raise ImageUnreadable(f"this {image_format} is damaged ({what}); copy it again from its source") from exc


def check_size(width: int, height: int, max_pixels: int) -> None:
    """
    Raises:
        ImageTooLarge: more pixels than the limit.
    """
    if width * height > max_pixels:
        raise ImageTooLarge(width, height, max_pixels, "VDSR_MAX_PIXELS")


def _shortage(data: bytes, image_format: str) -> MemoryError:
    return MemoryError(
        f"there was not enough memory to decode a {image_format} of {len(data):,} bytes; "
        "lower VDSR_MEMORY_BUDGET, or give this worker more memory"
    )


def _has_memory(data: bytes, image_format: str) -> bool:
    """Whether there is room for what libwebp, libavif or libheif takes, which do not tell a shortage from damage."""
    width, height = webp_size(data) if image_format == "WEBP" else largest_size(data)
    try:
        bytearray(8 * width * height)
    except MemoryError:
        return False
    return True
