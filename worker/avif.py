"""What does an AVIF say of itself that Pillow does not pass on? Its depth, and colours that have no profile."""

from __future__ import annotations

from collections.abc import Iterator

from vdsr.errors import ImageUnreadable, ImageUnsupported

BRANDS = (b"avif", b"avis")
"""Of stills and of sequences."""
MOST_BOXES = 1000
"""Looked at: others have some dozens."""
CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}
"""Boxes that hold boxes -> bytes before these."""
WIDE_PRIMARIES, HDR_TRANSFERS = {9, 11, 12}, {8, 16, 18}
"""By ITU-T H.273: BT.2020, the two P3; linear, PQ, HLG."""


def is_avif(data: bytes) -> bool:
    """Whether the first box names AVIF among the brands that the file keeps to."""
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return any(brands[at : at + 4] in BRANDS for at in range(0, len(brands), 4))


def depth(data: bytes) -> int:
    """Bits a channel of the first picture: 8, 10 or 12."""
    for kind, body in _boxes(data):
        if kind == b"av1C" and len(body) > 2:
            return 12 if body[2] & 0x20 else 10 if body[2] & 0x40 else 8
    return 8


def largest_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest picture in it, be it the one that is shown or a part of it; (0, 0) if none."""
    found = [
        (int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big"))
        for kind, body in _boxes(data)
        if kind == b"ispe"
    ]
    return max(found, key=lambda size: size[0] * size[1], default=(0, 0))


def check_frames(data: bytes) -> None:
    """Refuse coded pictures that are larger than any that the container declares: libavif would decode and shrink it.

    Raises:
        ImageUnreadable: there is one.
    """
    width, height = largest_size(data)
    for kind, body in _boxes(data):
        for start in _item_starts(body) if kind == b"iloc" else ():
            coded = _coded_size(data[start : start + 128])
            if coded[0] * coded[1] > width * height:
                raise ImageUnreadable(
                    f"this AVIF says {width:,} x {height:,} and holds {coded[0]:,} x {coded[1]:,}; save it again"
                )


def check_colors(data: bytes) -> None:
    """Refuse colours that would be taken for sRGB and are far from it.

    Raises:
        ImageUnsupported: high dynamic range, or a wide gamut that is told by numbers and not by a profile.
    """
    boxes = [body for kind, body in _boxes(data) if kind == b"colr"]
    if any(body[:4] in (b"prof", b"rICC") for body in boxes):
        return
    for body in boxes:
        primaries, transfer = int.from_bytes(body[4:6], "big"), int.from_bytes(body[6:8], "big")
        if body[:4] == b"nclx" and (primaries in WIDE_PRIMARIES or transfer in HDR_TRANSFERS):
            raise ImageUnsupported(
                f"its colours are HDR or of a wide gamut (primaries {primaries}, transfer {transfer}) without a colour "
                "profile, and would be shown wrong; convert the picture to sRGB"
            )


def ends_early(data: bytes) -> bool:
    """Whether a box of the file reaches beyond its end."""
    at = 0
    for _ in range(MOST_BOXES):
        if at + 8 > len(data):
            return at != len(data)
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0 means to the end
            return False
        at += size
    return False


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the boxes that describe the pictures."""
    waiting, seen = [(0, len(data))], 0
    while waiting:
        at, stop = waiting.pop()
        while at + 8 <= stop and seen < MOST_BOXES:
            seen += 1
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            end = min(at + size, stop) if size >= 8 else stop
            if kind in CONTAINERS:
                waiting.append((at + 8 + CONTAINERS[kind], end))
            elif kind in (b"av1C", b"colr", b"ispe", b"iloc"):
                yield kind, data[at + 8 : end]
            at = end


def _item_starts(iloc: bytes) -> Iterator[int]:
    """Where the items begin in the file (ISO/IEC 14496-12, 8.11.3), as far as they lie in it as they are."""
    version = iloc[0] if iloc else 0
    wide = 4 if version == 2 else 2
    sizes = int.from_bytes(iloc[4:6], "big")
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    count, at = int.from_bytes(iloc[6 : 6 + wide], "big"), 6 + wide
    for _ in range(min(count, MOST_BOXES)):
        at += wide
        method = int.from_bytes(iloc[at : at + 2], "big") & 15 if version else 0
        at += 4 if version else 2
        start = int.from_bytes(iloc[at : at + base], "big")
        at += base
        extents, at = int.from_bytes(iloc[at : at + 2], "big"), at + 2
        first = at + (index if version else 0)
        at += extents * ((index if version else 0) + offset + length)
        if at > len(iloc):
            return
        if method == 0 and extents:
            yield start + int.from_bytes(iloc[first : first + offset], "big")


def _coded_size(item: bytes) -> tuple[int, int]:
    """Width and height by the sequence header at the beginning of AV1 data (AV1 specification, 5.5); (0, 0) if none."""
    at = 2 if item[:2] == b"\x12\0" else 0  # a temporal delimiter
    if item[at : at + 1] != b"\x0a":
        return 0, 0
    bits = "".join(f"{byte:08b}" for byte in item[at + 2 :])
    place = 10  # profile, still picture, reduced header, level
    if bits[4:5] == "0":
        if bits[5:6] == "1":  # with timing, which pictures have no use for
            return 0, 0
        delays, points = bits[6:7] == "1", int(bits[7:12] or "0", 2) + 1
        place = 12
        for _ in range(points):
            place += 12
            place += 6 if int(bits[place : place + 5] or "0", 2) > 7 else 5
            if delays:
                place += 5 if bits[place : place + 1] == "1" else 1
    widths = [int(bits[place + n : place + n + 4] or "0", 2) + 1 for n in (0, 4)]
    place += 8
    numbers = (bits[place : place + widths[0]], bits[place + widths[0] : place + sum(widths)])
    return int(numbers[0] or "0", 2) + 1, int(numbers[1] or "0", 2) + 1
