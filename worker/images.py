"""What does a picture's file hold, and how is it written again? Bytes <-> arrays, with all else that the file carries.

| written | pixels                           | colour profile | EXIF        | dpi           |
|---------|----------------------------------|----------------|-------------|---------------|
| JPEG    | gray, RGB                        | yes            | up to 64 KB | whole numbers |
| PNG     | gray, RGB, + alpha; 8 or 16 bits | yes            | yes         | yes           |
| WebP    | RGB, RGBA; gray becomes RGB      | unless gray's  | yes         | in EXIF only  |
| TIFF    | gray, RGB, + alpha; 8 or 16 bits | yes            | yes         | yes           |
| BMP     | gray, RGB, RGBA; LA becomes RGBA | no             | no          | yes           |
| AVIF    | gray, RGB, RGBA; LA becomes RGBA | yes            | yes         | in EXIF only  |

GIF is read and becomes PNG; CMYK becomes sRGB. XMP is carried as EXIF is.
IPTC, comments, and PNG's gAMA and text chunks are not carried over.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vdsr.errors import (
    FormatLimit,
    ImageEmpty,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    ImageUnreadable,
    ImageUnsupported,
)
from vdsr.pillow import SIXTEEN, from_array, to_array
from worker.avif import check_colors, check_frames, depth, ends_early, is_avif, largest_size
from worker.cmyk import NOTE as INKS_NOTE
from worker.cmyk import srgb_pixels, to_srgb
from worker.deep import GRAY_ALPHA, deep_pixels, disguised, gray_alpha_pixels, is_deep, with_transparent
from worker.exif import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    SAMPLE_FORMAT,
    SAMPLES_PER_PIXEL,
    TILE_HEIGHT,
    TILE_WIDTH,
    DamagedExif,
    count_pages,
    exif_of_tiff,
    first_tags,
    is_bomb,
    number,
    numbers,
    pixels_end,
    sized_exif,
    tiff_with_exif,
    upright_exif,
)
from worker.formats import FORMATS, output_format
from worker.png import encode_png
from worker.tiff import XMP, encode_tiff
from worker.xmp import DamagedXmp, sized_xmp, upright_xmp

__all__ = ["Extras", "Header", "Picture", "check_output", "decode", "encode", "output_format", "without_opaque_alpha"]

MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 16_384}
"""Pixels a side. JPEG's own limit is 65,535, but libjpeg ends at 65,500. libavif reads no picture
of more than 16,384 squared."""
LONGEST_SIDE = 200_000
"""Pixels after scaling, in any format: time and memory of bicubic grow with a side, however few pixels there are."""
FRAMES_COUNTED = 1000
"""There may be millions, which take minutes to find."""
MOST_PIECES = 10_000
"""Markers of a JPEG before its pixels, chunks of a PNG beside them: others have some dozens, and Pillow takes a
microsecond and keeps a hundred bytes for each."""
LEAST_PIECE_BYTES = 256
"""Chunks of a PNG that hold fewer are counted among them."""
MOST_BLOCKS = 100_000
"""Pieces of the extensions of a GIF before its pixels, 255 bytes each: likewise."""
MOST_JUNK_BYTES = 1 << 20
"""Between the markers of a JPEG."""
MOST_EXIF_MARKERS = 64
"""Of a JPEG, 64 KB each: Pillow puts them together in time by the square of their number."""
MAX_FILE_BYTES = {"TIFF": 2**32, "BMP": 2**32}
"""What 32-bit offsets reach."""

MOST_JPEG_EXIF, MOST_JPEG_XMP, MOST_JPEG_PROFILE = 65_527, 65_400, 255 * 65_519
"""Bytes. EXIF and XMP have one marker each, a profile at most 255."""
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

DEEP_TIFF = {(1, 0), (1, 1), (3, 2), (4, 2)}
"""Samples a pixel and photometric interpretation, gray or RGB, that are read with 16 bits."""
SEPARATE = 2
"""Planar configuration."""

TIFF_COMPRESSIONS = {
    "raw": "raw",
    "packbits": "packbits",
    "tiff_lzw": "tiff_lzw",
    "tiff_adobe_deflate": "tiff_adobe_deflate",
    "tiff_deflate": "tiff_adobe_deflate",
}
"""Lossless compressions of sources, by Pillow's names -> what is written for them."""

CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3}
"""By Pillow's modes, where it is not up to 4."""

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


@dataclass(frozen=True)
class Extras:
    """What a file carries beside its pixels."""

    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A TIFF structure ("II*..." or "MM..."), upright and without a thumbnail."""
    xmp: bytes | None = None
    """A packet in UTF-8, upright."""
    dpi: tuple[float, float] | None = None
    """Horizontal, vertical."""
    lossless: bool = False
    """It was a lossless WebP, and stays one if it stays WebP, whatever the quality asked for."""
    compression: str | None = None
    """For TIFF, by Pillow's name; None stands for deflate."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Picture:
    """A decoded file."""

    pixels: NDArray[Any]
    """(H, W) or (H, W, 2 | 3 | 4), uint8 or uint16: gray, gray and alpha, RGB, RGBA. Upright."""
    format: str
    """One of `worker.formats.FORMATS`: what the bytes are, whatever the name says."""
    extras: Extras
    notes: tuple[str, ...]
    """What the user should know, such as "first of 12 frames"."""


@dataclass(frozen=True)
class Header:
    """What is known before any pixel is decoded."""

    format: str
    width: int
    height: int
    pixel_bytes: int
    """The most that a pixel of `Picture.pixels` can take."""
    alpha: bool = False
    """Whether there may be some."""


def decode(data: bytes, *, max_pixels: int, on_header: Callable[[Header], None] | None = None) -> Picture:
    """The first picture in a file's bytes.

    Args:
        on_header: called before pixels are decoded; may wait, and what it raises ends the decoding.

    Raises:
        ImageError: by one of its subclasses; the bytes may be anything.
    """
    if not data:
        raise ImageEmpty
    image_format = _sniff(data)
    image = _open(data, image_format, max_pixels)
    notes = ["1-bit became 8-bit gray"] if image.mode == "1" else []
    deep = is_deep(image)
    pixels: NDArray[Any]
    inks = to_srgb(image.info.get("icc_profile")) if image.mode == "CMYK" else None
    if on_header:
        on_header(_header(image, image_format, deep=deep))
    xmp = image.info.get("xmp")  # loading a TIFF cuts some of it out, and loading a PNG may bring it
    transparent = image.info.pop("transparency", None) if deep or image.mode in SIXTEEN else None
    if deep:
        with _reading(data, image_format):
            pixels = deep_pixels(image, lambda: _open(data, image_format, max_pixels))
    else:
        with _reading(data, image_format):
            image.load()
        pixels = srgb_pixels(image, inks) if inks else _pixels(image, data, image_format)
    if transparent is not None:
        pixels = with_transparent(pixels, transparent)
    exif, orientation = _read_exif(image, data, image_format, notes)
    compression = _read_compression(image, image_format, notes)
    _note_frames(image, data, image_format, notes)
    if image_format == "TIFF" and _samples(data) > len(image.getbands()):
        notes.append("a channel beside the colours that is no transparency is left out")
    if inks:
        notes.append(INKS_NOTE)
    if image_format == "AVIF" and depth(data) > 8:
        notes.append(f"{depth(data)} bits per channel became 8")
    profile = None if inks else image.info.get("icc_profile")
    extras = Extras(
        icc_profile=profile if profile and isinstance(profile, bytes) else None,
        exif=exif,
        xmp=_read_xmp(xmp or image.info.get("xmp"), notes),
        dpi=_read_dpi(image),
        lossless=image_format == "WEBP" and _is_lossless(data),
        compression=compression,
    )
    return Picture(_upright(pixels, orientation), image_format, extras, tuple(notes))


def without_opaque_alpha(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same pixels, less an alpha channel that hides nothing: what a format without alpha can hold after all."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and (pixels[..., -1] == np.iinfo(pixels.dtype).max).all():
        return pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
    return pixels


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
    _check_kind(pixels, image_format)
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
            or (colored and _color_profile(extras) is None)
        ),
        "EXIF": extras.exif
        and (image_format == "BMP" or (image_format == "JPEG" and len(extras.exif) > MOST_JPEG_EXIF)),
        "XMP": extras.xmp and (image_format == "BMP" or (image_format == "JPEG" and len(extras.xmp) > MOST_JPEG_XMP)),
        "its resolution": extras.dpi and not extras.exif and image_format in ("WEBP", "AVIF"),
    }
    names = [name for name, gone in lost.items() if gone]
    return (f"{image_format} does not hold {', '.join(names)}: left out",) if names else ()


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
    _check_kind(pixels, image_format)
    return WRITERS[image_format](pixels, extras, quality)


# ---- reading --------------------------------------------------------------------------------------------------------

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


def _header(image: Image.Image, image_format: str, *, deep: bool) -> Header:
    added = image.mode in ("1", "L", "RGB", *SIXTEEN) and image.has_transparency_data
    sample_bytes = 2 if deep or image.mode in SIXTEEN else 1
    pixel_bytes = sample_bytes * (CHANNELS.get(image.mode, 4) + added)
    return Header(image_format, *image.size, pixel_bytes, added or image.has_transparency_data)


def _sniff(data: bytes) -> str:
    """The format that the first bytes announce."""
    for magic, image_format in MAGIC.items():
        if data.startswith(magic) and (image_format != "WEBP" or data[8:12] == b"WEBP"):
            return image_format
    if is_avif(data):
        return "AVIF"
    if any(magic.startswith(data) for magic in MAGIC):
        raise ImageTruncated(f"there are only {len(data)} bytes; copy the file again from its source")
    start = data[:32].lstrip().lower()
    seen = [f", like {name}" for magic, name in STRANGERS.items() if start.startswith(magic)]
    if data[4:8] == b"ftyp":
        seen = [", like HEIC or a video"]
    raise ImageUnreadable(
        f"this is none of {', '.join(FORMATS)}: it begins with {data[:8]!r}{''.join(seen)}; convert it or leave it out"
    )


def _open(data: bytes, image_format: str, max_pixels: int) -> Image.Image:
    """The picture with its header read, and no pixels."""
    own_exif = b""
    if image_format == "TIFF":
        _check_tiff(data)
    elif image_format == "PNG":
        _check_png(data)
    elif image_format == "JPEG":
        own_exif = _checked_jpeg(data)
    elif image_format == "AVIF":
        check_frames(data)
        check_colors(data)
    _check_size(*_allocated_size(data, image_format), max_pixels)
    # Ours is the limit, for the whole process: Pillow's would refuse what ours lets pass, and up to twice its value
    # it is a mere warning.
    Image.MAX_IMAGE_PIXELS = None
    with _reading(data, image_format):
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
    _check_size(*image.size, max_pixels)
    return image


@contextmanager
def _reading(data: bytes, image_format: str) -> Iterator[None]:
    """Around Pillow's own calls, and nothing else: what they raise, as the ImageError that it is."""
    try:
        yield
    except MemoryError as exc:
        raise _shortage(data, image_format) from exc
    except DAMAGE as exc:
        if image_format in ("WEBP", "AVIF") and not _has_memory(data, image_format):
            raise _shortage(data, image_format) from exc
        if "truncated" in str(exc).lower() or _ends_early(data, image_format):
            raise ImageTruncated(
                f"this {image_format} of {len(data):,} bytes ends before its pixels do; copy it again from its source"
            ) from exc
        what = "its header makes no sense" if isinstance(exc, UnidentifiedImageError) else str(exc)
        raise ImageUnreadable(f"this {image_format} is damaged ({what}); copy it again from its source") from exc


def _shortage(data: bytes, image_format: str) -> MemoryError:
    return MemoryError(
        f"there was not enough memory to decode a {image_format} of {len(data):,} bytes; "
        "lower VDSR_MEMORY_BUDGET, or give this worker more memory"
    )


def _has_memory(data: bytes, image_format: str) -> bool:
    """Whether there is room for what libwebp or libavif takes, which do not tell a shortage from damage."""
    width, height = _webp_size(data) if image_format == "WEBP" else largest_size(data)
    try:
        bytearray(8 * width * height)
    except MemoryError:
        return False
    return True


def _ends_early(data: bytes, image_format: str) -> bool:
    """Whether a file that could not be decoded lacks its end."""
    if image_format == "PNG":
        return b"IEND" not in data
    if image_format == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if image_format == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    if image_format == "AVIF":
        return ends_early(data)
    if image_format == "TIFF":
        return pixels_end(data) > len(data)
    return not data.rstrip(b"\0").endswith(b"\xff\xd9" if image_format == "JPEG" else b";")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(width, height, max_pixels, "VDSR_MAX_PIXELS")


def _allocated_size(data: bytes, image_format: str) -> tuple[int, int]:
    """Width and height of what Pillow allocates before it can be asked for the size; (0, 0) if nothing."""
    if image_format == "GIF":
        return _gif_size(data)
    if image_format == "WEBP":
        return _webp_size(data)
    if image_format == "AVIF":
        return largest_size(data)
    if image_format == "TIFF":  # libtiff takes a whole tile, however small the picture is
        tags = first_tags(data)
        return number(data, tags.get(TILE_WIDTH)), number(data, tags.get(TILE_HEIGHT))
    return 0, 0


def _gif_size(data: bytes) -> tuple[int, int]:
    """The screen's, or the first frame's where that reaches beyond it."""
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    palette = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    at, blocks = 13 + palette, 0
    while at < len(data) and data[at] != 0x2C:  # an image begins
        if data[at] == 0x21:  # an extension: its label, then blocks until an empty one
            at += 2
            while at < len(data) and data[at] and blocks <= MOST_BLOCKS:
                at += 1 + data[at]
                blocks += 1
        at += 1
        blocks += 1
        if blocks > MOST_BLOCKS:
            raise ImageUnreadable(_too_many("GIF", f"{MOST_BLOCKS:,} blocks before its pixels"))
    left, top, wide, high = (int.from_bytes(data[i : i + 2], "little") for i in range(at + 1, at + 9, 2))
    return max(width, left + wide), max(height, top + high)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _is_lossless(webp: bytes) -> bool:
    at = 12
    while at + 8 <= len(webp):
        kind = webp[at : at + 4]
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # an animation's frame holds chunks of its own
    return False


def _check_png(data: bytes) -> None:
    """Refuse more chunks than pictures have, and more than the one colour profile that is allowed."""
    at, profiles, pieces = 8, 0, 0
    while at + 8 <= len(data):
        length, chunk = struct.unpack_from(">L4s", data, at)
        profiles += chunk == b"iCCP"
        pieces += chunk not in (b"IDAT", b"fdAT") or length < LEAST_PIECE_BYTES
        if pieces > MOST_PIECES:
            raise ImageUnreadable(_too_many("PNG", f"{MOST_PIECES:,} chunks that hold no pixels, or hardly any"))
        if profiles > 1:  # Pillow would unpack 1 MB out of each
            raise ImageUnreadable("this PNG has more than one colour profile; open it and save it again")
        at += 12 + length


def _checked_jpeg(data: bytes) -> bytes:
    """EXIF, as Pillow will read it, of a JPEG whose markers come to an end."""
    at, pieces, junk = 2, 0, 0
    exif: list[bytes] = []
    while at + 4 <= len(data) and data[at : at + 2] != b"\xff\xda":  # the pixels begin
        pieces += 1
        if data[at] != 0xFF:
            marker = data.find(b"\xff", at, at + MOST_JUNK_BYTES)
            stop = marker if marker >= 0 else at + MOST_JUNK_BYTES
            at, junk = stop, junk + stop - at
        elif data[at + 1] == 0xFF:  # padding
            at += 1
        elif data[at + 1] < 0x02 or 0xD0 <= data[at + 1] <= 0xD9:  # markers without a length
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                exif.append(data[at + 10 : at + 2 + length])
            at += 2 + max(2, length)
        if pieces > MOST_PIECES or junk >= MOST_JUNK_BYTES:
            limit = f"{MOST_PIECES:,} markers or {MOST_JUNK_BYTES:,} stray bytes before its pixels"
            raise ImageUnreadable(_too_many("JPEG", limit))
        if len(exif) > MOST_EXIF_MARKERS:
            raise ImageUnreadable(_too_many("JPEG", f"{MOST_EXIF_MARKERS} markers with EXIF"))
    return b"".join(exif)


def _too_many(image_format: str, limit: str) -> str:
    return f"this {image_format} has more than {limit}; open it and save it again"


def _check_tiff(data: bytes) -> None:
    """Refuse tags that would fill the memory, and samples that Pillow would cut to 8 bits, or misread."""
    if is_bomb(data):
        raise ImageUnreadable(
            f"the tags of this TIFF claim more than its {len(data):,} bytes, or millions of numbers; "
            "open it and save it again"
        )
    tags = first_tags(data)
    if set(numbers(data, tags.get(SAMPLE_FORMAT))) - {1}:
        raise ImageUnsupported(
            "its samples are signed or floating point; convert the picture to 8 bits, or to 16-bit grayscale"
        )
    bits = numbers(data, tags.get(BITS_PER_SAMPLE))
    samples = _samples(data)
    if not bits or max(bits) <= 8:
        return
    if set(bits) != {16} or (samples, number(data, tags.get(PHOTOMETRIC))) not in DEEP_TIFF:
        raise ImageUnsupported(
            f"a TIFF of {samples} x {max(bits)} bits per pixel is kept only as 16-bit gray, RGB or RGBA, "
            "and would be cut to 8 bits here; convert the picture to one of these"
        )
    if samples > 1 and number(data, tags.get(PLANAR)) == SEPARATE:
        raise ImageUnsupported(
            "its 16-bit channels lie apart, one plane after the other; convert the picture to interleaved channels"
        )


def _samples(tiff: bytes) -> int:
    """Channels of a TIFF."""
    tags = first_tags(tiff)
    return max(len(numbers(tiff, tags.get(BITS_PER_SAMPLE))), number(tiff, tags.get(SAMPLES_PER_PIXEL)))


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


def _read_exif(image: Image.Image, data: bytes, image_format: str, notes: list[str]) -> tuple[bytes | None, int]:
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


def _read_xmp(xmp: Any, notes: list[str]) -> bytes | None:
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


def _read_compression(image: Image.Image, image_format: str, notes: list[str]) -> str | None:
    if image_format != "TIFF":
        return None
    found = image.info["compression"]
    kept = TIFF_COMPRESSIONS.get(found)
    if kept is None:
        notes.append(f"{found} compression becomes deflate where the output is TIFF")
    return kept


def _note_frames(image: Image.Image, data: bytes, image_format: str, notes: list[str]) -> None:
    """Say so if there are pictures that are not looked at."""
    if image_format == "TIFF":
        frames = count_pages(data, FRAMES_COUNTED + 1)
    elif image_format == "GIF":
        frames, whole = _count_gif_frames(data, FRAMES_COUNTED + 1)
        if not whole:
            notes.append("first of several frames; a later one is damaged")
            return
    else:
        try:
            with _reading(data, image_format):
                frames = getattr(image, "n_frames", 1)
        except ImageError:
            notes.append("first of several frames; a later one is damaged")
            return
    if frames > FRAMES_COUNTED:
        notes.append(f"first of more than {FRAMES_COUNTED:,} frames")
    elif frames > 1:
        notes.append(f"first of {frames:,} frames")


def _count_gif_frames(data: bytes, most: int) -> tuple[int, bool]:
    """Frames of a GIF, counted up to `most`, and whether the last of several ends; Pillow would count them all."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while at < len(data) and data[at] != 0x3B and frames < most:
        kind = data[at]
        if kind not in (0x2C, 0x21):
            at += 1
            continue
        if kind == 0x2C:
            frames += 1
            flags = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return frames, at <= len(data) or frames < 2


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Only what every format can hold: some files say 0 or nan, and Pillow says 1 for a TIFF that says nothing."""
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return (x, y) if 1 < x <= 65_535 and 1 < y <= 65_535 else None


# ---- writing --------------------------------------------------------------------------------------------------------


def _check_kind(pixels: NDArray[Any], image_format: str) -> None:
    if pixels.dtype == np.uint16 and image_format not in ("PNG", "TIFF"):
        raise ImageUnsupported(f"{image_format} holds 8 bits per channel, and this picture has 16; use --format png")
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and image_format == "JPEG":
        raise ImageUnsupported("JPEG holds no transparency, and this picture has some; use --format png")


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
        "icc_profile": _color_profile(extras),
    }
    return _saved(from_array(pixels), "WEBP", options)


def _color_profile(extras: Extras) -> bytes | None:
    """The profile, unless it is one for gray, and gray becomes RGB."""
    profile = extras.icc_profile
    return None if profile and profile[16:20] == b"GRAY" else profile


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
            icc_profile=_color_profile(extras) if pixels.shape[2] == 2 else extras.icc_profile,
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
        "icc_profile": _color_profile(extras) if image.mode == "LA" else extras.icc_profile,
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
