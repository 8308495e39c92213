"""What does an AVIF say of itself that Pillow does not pass on? Its depth, and colours that have no profile."""

from __future__ import annotations

from collections.abc import Iterator

from vdsr.errors import ImageUnsupported

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
            elif kind in (b"av1C", b"colr", b"ispe"):
                yield kind, data[at + 8 : end]
            at = end
