"""What does an AVIF or a HEIC say of itself that its decoder does not pass on, or only too late?

Both are boxes of ISO/IEC 14496-12 with items by ISO/IEC 23008-12. Their depth, sizes and colours are read here, and
the sizes of what is coded in them, before a decoder takes memory for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from vdsr.errors import ImageUnreadable, ImageUnsupported

AVIF_BRANDS = (b"avif", b"avis")
"""Of stills and of sequences."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
"""Of those that hold HEVC; the last two leave the codec open, and are asked for after AVIF's."""
MOST_BOXES = 1000
"""Looked at: others have some dozens."""
CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}
"""Boxes that hold boxes -> bytes before these."""
HEVC_BLOCK = 64
"""Pixels a side: HEVC codes whole blocks, and the container tells what is cut out of them."""
MOST_UNITS = 100
"""Of HEVC's data that are looked at, an item; what tells sizes stands first."""
SEQUENCE = 33
"""The kind of unit that tells sizes (ITU-T H.265, table 7-1)."""
WIDE_PRIMARIES, HDR_TRANSFERS = {9, 11, 12}, {8, 16, 18}
"""By ITU-T H.273: BT.2020, the two P3; linear, PQ, HLG."""


def is_avif(data: bytes) -> bool:
    """Whether the first box names AVIF among the brands that the file keeps to."""
    return _has_brand(data, AVIF_BRANDS)


def is_heic(data: bytes) -> bool:
    """Whether it names one of HEIC's."""
    return _has_brand(data, HEIC_BRANDS)


def depth(data: bytes) -> int:
    """Bits a channel of the first picture of an AVIF: 8, 10 or 12."""
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
    """Refuse coded pictures that are larger than any that the container declares: they would be decoded nevertheless.

    Raises:
        ImageUnreadable: there is one.
    """
    width, height = largest_size(data)
    block = 0 if is_avif(data) else HEVC_BLOCK
    most = (width + block) * (height + block)
    for kind, body in _boxes(data):
        coded = [
            *(_hevc_sizes(body) if kind == b"hvcC" else ()),
            *(size for start in _item_starts(body) if kind == b"iloc" for size in _item_sizes(data, start)),
        ]
        for wide, high in coded:
            if wide * high > most:
                raise ImageUnreadable(
                    f"this file says {width:,} x {height:,} and holds {wide:,} x {high:,}; save it again"
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
            elif kind in (b"av1C", b"hvcC", b"colr", b"ispe", b"iloc"):
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


def _item_sizes(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Sizes that the data of an item tell, whichever codec they are of."""
    yield _coded_size(data[start : start + 128])
    for _ in range(MOST_UNITS):  # HEVC's units, each behind its length
        kind = data[start + 4 : start + 5]
        if not kind:
            return
        length = int.from_bytes(data[start : start + 4], "big")
        if kind[0] >> 1 & 63 == SEQUENCE:
            yield _sequence_size(data[start + 4 : start + 4 + min(length, 512)])
        start += 4 + length


def _hevc_sizes(configuration: bytes) -> Iterator[tuple[int, int]]:
    """Sizes that the decoder's configuration tells (ISO/IEC 14496-15, 8.3.3)."""
    at, seen = 23, 0
    for _ in range(configuration[22] if len(configuration) > 22 else 0):
        units = int.from_bytes(configuration[at + 1 : at + 3], "big")
        at += 3
        for _ in range(units):
            length = int.from_bytes(configuration[at : at + 2], "big")
            unit = configuration[at + 2 : at + 2 + length]
            at, seen = at + 2 + length, seen + 1
            if at > len(configuration) or seen > MOST_UNITS:
                return
            if unit and unit[0] >> 1 & 63 == SEQUENCE:
                yield _sequence_size(unit[:512])


def _sequence_size(unit: bytes) -> tuple[int, int]:
    """Width and height by a sequence parameter set (ITU-T H.265, 7.3.2.2)."""
    bits = "".join(f"{byte:08b}" for byte in unit[2:].replace(b"\0\0\3", b"\0\0"))
    layers = int(bits[4:7] or "0", 2)
    place = 8 + 96  # of the general profile
    flags = bits[place : place + 2 * layers]
    place += 16 if layers else 0
    for layer in range(layers):
        place += 88 * (flags[2 * layer : 2 * layer + 1] == "1") + 8 * (flags[2 * layer + 1 : 2 * layer + 2] == "1")
    _, place = _golomb(bits, place)
    chroma, place = _golomb(bits, place)
    width, place = _golomb(bits, place + (chroma == 3))
    height, _ = _golomb(bits, place)
    return width, height


def _golomb(bits: str, place: int) -> tuple[int, int]:
    """An Exp-Golomb number and the place behind it; (0, the end) where the bits end."""
    one = bits.find("1", place)
    if one < 0:
        return 0, len(bits)
    end = 2 * one - place + 1
    return int(bits[one:end], 2) - 1, end


def _has_brand(data: bytes, brands: tuple[bytes, ...]) -> bool:
    if data[4:8] != b"ftyp":
        return False
    named = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return any(named[at : at + 4] in brands for at in range(0, len(named), 4))


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
