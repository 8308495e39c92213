"""What is refused before a decoder sees it? What a file says of itself, read without decoding anything.

Decoders take time and memory by what a file claims: markers, chunks and tags without end, and sizes that no pixel
follows. Here it is held against limits first.
"""

from __future__ import annotations

import struct

from vdsr.errors import ImageUnreadable, ImageUnsupported
from worker import isobmff
from worker.exif import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    SAMPLES_PER_PIXEL,
    TILE_HEIGHT,
    TILE_WIDTH,
    first_tags,
    is_bomb,
    number,
    numbers,
    pixels_end,
)

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
DEEP_TIFF = {(1, 0), (1, 1), (3, 2), (4, 2)}
"""Samples a pixel and photometric interpretation, gray or RGB, that are read with 16 bits."""
SEPARATE = 2
"""Planar configuration."""


def allocated_size(data: bytes, image_format: str) -> tuple[int, int]:
    """Width and height of what Pillow allocates before it can be asked for the size; (0, 0) if nothing."""
    if image_format == "GIF":
        return _gif_size(data)
    if image_format == "WEBP":
        return webp_size(data)
    if image_format in ("AVIF", "HEIC"):
        return isobmff.largest_size(data)
    if image_format == "TIFF":  # libtiff takes a whole tile, however small the picture is
        tags = first_tags(data)
        return number(data, tags.get(TILE_WIDTH)), number(data, tags.get(TILE_HEIGHT))
    return 0, 0


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP, by the header of its kind."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        sides = int.from_bytes(data[21:25], "little")
        return 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def is_lossless(webp: bytes) -> bool:
    """Whether the first picture of a WebP is compressed without loss."""
    at = 12
    while at + 8 <= len(webp):
        kind = webp[at : at + 4]
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # an animation's frame holds chunks of its own
    return False


def ends_early(data: bytes, image_format: str) -> bool:
    """Whether a file that could not be decoded lacks its end."""
    if image_format == "PNG":
        return b"IEND" not in data
    if image_format == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if image_format == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    if image_format in ("AVIF", "HEIC"):
        return isobmff.ends_early(data)
    if image_format == "TIFF":
        return pixels_end(data) > len(data)
    return not data.rstrip(b"\0").endswith(b"\xff\xd9" if image_format == "JPEG" else b";")


def check_png(data: bytes) -> None:
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


def checked_jpeg(data: bytes) -> bytes:
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


def check_tiff(data: bytes) -> None:
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
    samples = channels_of_tiff(data)
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


def channels_of_tiff(tiff: bytes) -> int:
    """Channels of a TIFF."""
    tags = first_tags(tiff)
    return max(len(numbers(tiff, tags.get(BITS_PER_SAMPLE))), number(tiff, tags.get(SAMPLES_PER_PIXEL)))


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


def _too_many(image_format: str, limit: str) -> str:
    return f"this {image_format} has more than {limit}; open it and save it again"
