"""What do EXIF and TIFF directories say, and how are they changed without harm? Both are the same structure.

EXIF is changed in place, as bytes: Pillow's own rewriting garbles text that is not ASCII and moves maker notes, whose
offsets then point nowhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR, SAMPLE_FORMAT, PREDICTOR = 258, 262, 277, 284, 339, 317
STRIP_OFFSETS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 273, 279, 322, 323, 324, 325
IMAGE_WIDTH, IMAGE_HEIGHT, ORIENTATION, EXIF_WIDTH, EXIF_HEIGHT = 256, 257, 274, 0xA002, 0xA003
EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005
CHILDREN = {0: (EXIF, GPS), EXIF: (INTEROP,)}
"""Directory, 0 being the first -> its tags that point to another."""
DESCRIPTIVE = {
    *(269, 270, 271, 272, ORIENTATION, 285),  # document, description, make, model, orientation, page
    *(305, 306, 315, 316),  # software, date, artist, computer
    *(18246, 18249, 33432, *range(40091, 40096)),  # rating, copyright, Windows' own
    *(EXIF, GPS),
}
"""What a TIFF's first directory says about the picture, where most of it says how the pixels lie in the file."""
OWNERS = {315, 33432, 40093}
"""Artist, copyright, and Windows' own author."""
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}
"""Type of a value -> bytes of what its byte order applies to; a rational (5, 10) has two of that."""
NUMBERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
"""Types that hold whole numbers."""


MOST_TAGS = 65_535
MOST_NUMBERS = 1_000_000
"""Of one tag: a picture has fewer strips and tiles."""


class DamagedExif(Exception):
    """The directories cannot be followed."""


class _Entry(NamedTuple):
    """One tag of a directory."""

    at: int
    """Of the entry itself; its value lies from `start` to `stop`."""
    kind: int
    length: int
    start: int
    stop: int


def _order(data: bytes) -> str:
    return ">" if data[:2] == b"MM" else "<"


def _first(data: bytes) -> int:
    """Where the first directory begins."""
    big = 43 in data[2:4]
    return int.from_bytes(data[8:16] if big else data[4:8], "big" if _order(data) == ">" else "little")


def _directory(data: bytes, start: int) -> tuple[dict[int, _Entry], int]:
    """Tags whose values lie inside the bytes, and where the pointer to the next directory lies."""
    order = _order(data)
    count_code, entry, word = ("Q", "HHQ", 8) if 43 in data[2:4] else ("H", "HHL", 4)
    at = start + struct.calcsize(count_code)
    if at > len(data):
        raise DamagedExif
    (count,) = struct.unpack_from(order + count_code, data, start)
    size = struct.calcsize("=" + entry) + word
    if count > MOST_TAGS or at + count * size + word > len(data):
        raise DamagedExif
    found: dict[int, _Entry] = {}
    for place in range(at, at + count * size, size):
        tag, kind, length = struct.unpack_from(order + entry, data, place)
        value = place + size - word
        length_bytes = length * WIDTHS.get(kind, 8 if kind in (16, 17, 18) else 0) * (2 if kind in (5, 10) else 1)
        if length_bytes > word:
            (value,) = struct.unpack_from(order + entry[-1], data, value)
        if 0 < length_bytes <= len(data) - value:
            found.setdefault(tag, _Entry(place, kind, length, value, value + length_bytes))
    return found, at + count * size


def first_tags(data: bytes) -> dict[int, _Entry]:
    """The first directory; empty if there is none."""
    try:
        return _directory(data, _first(data))[0]
    except DamagedExif:
        return {}


def is_bomb(data: bytes) -> bool:
    """Whether reading the directories would fill memory many times over: tags that share the same bytes or have
    millions of numbers. Pillow copies every tag's value, also out of directories that are cut off.
    """
    waiting = [(0, _first(data))]
    while waiting:
        name, start = waiting.pop()
        children, sound = _children(data, start, CHILDREN.get(name, ()))
        if not sound:
            return True
        waiting += children
    return False


def _children(data: bytes, start: int, wanted: tuple[int, ...]) -> tuple[list[tuple[int, int]], bool]:
    """Directories that this one points to, and whether its values have room in the file beside each other."""
    order = _order(data)
    count_code, entry, word = ("Q", "HHQ", 8) if 43 in data[2:4] else ("H", "HHL", 4)
    at, size = start + struct.calcsize(count_code), struct.calcsize("=" + entry) + word
    if at > len(data):
        return [], True
    (count,) = struct.unpack_from(order + count_code, data, start)
    if count > MOST_TAGS:
        return [], False
    claimed, children = 0, []
    for place in range(at, min(at + count * size, len(data) - size + 1), size):
        tag, kind, length = struct.unpack_from(order + entry, data, place)
        width = WIDTHS.get(kind, 8)
        length_bytes = length * width * (2 if kind in (5, 10) else 1)
        (value,) = struct.unpack_from(order + entry[-1], data, place + size - word)
        if tag in wanted:
            children.append((tag, value))
        if word < length_bytes <= len(data) - value:
            claimed += length_bytes
            if claimed > len(data) or (width > 1 and length > MOST_NUMBERS):
                return [], False
    return children, True


def numbers(data: bytes, entry: _Entry | None) -> tuple[int, ...]:
    """The whole numbers of a tag; none where it is missing or holds something else."""
    if entry is None or entry.kind not in NUMBERS:
        return ()
    return struct.unpack_from(f"{_order(data)}{entry.length}{NUMBERS[entry.kind]}", data, entry.start)


def number(data: bytes, entry: _Entry | None) -> int:
    """The first of `numbers`, or 0."""
    return next(iter(numbers(data, entry)), 0)


def pixels_end(data: bytes) -> int:
    """Where the strips or tiles of a TIFF should end; beyond the bytes if not even its directory is there."""
    tags = first_tags(data)
    starts = numbers(data, tags.get(STRIP_OFFSETS)) + numbers(data, tags.get(TILE_OFFSETS))
    sizes = numbers(data, tags.get(STRIP_BYTES)) + numbers(data, tags.get(TILE_BYTES))
    ends = (start + size for start, size in zip(starts, sizes, strict=False))
    return max(ends, default=0) if tags else len(data) + 1


def count_pages(data: bytes, most: int) -> int:
    """Pages of a TIFF, counted up to `most`; Pillow's own count takes time by the square of their number."""
    seen: set[int] = set()
    order, big = _order(data), 43 in data[2:4]
    at = _first(data)
    while at and at not in seen and len(seen) < most and at + (8 if big else 2) <= len(data):
        seen.add(at)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
        link = at + (8 + count * 20 if big else 2 + count * 12)
        if link + (8 if big else 4) > len(data):
            break
        (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, link)
    return len(seen)


def _directories(exif: bytes) -> Iterator[tuple[dict[int, _Entry], int]]:
    """The first directory, then EXIF's, GPS's and that of interoperability; where each one's next pointer lies."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        raise DamagedExif
    taken = [range(8)]  # a change in one of them must not be one in another
    waiting = [(0, _first(exif))]
    while waiting:
        name, start = waiting.pop()
        tags, end = _directory(exif, start)
        if any(start < other.stop and other.start < end + 4 for other in taken):
            raise DamagedExif
        taken.append(range(start, end + 4))
        yield tags, end
        waiting += [(child, number(exif, tags[child])) for child in CHILDREN.get(name, ()) if child in tags]


def upright_exif(exif: bytes) -> tuple[bytes, int]:
    """EXIF that says upright and has no thumbnail, and the orientation that it had.

    All else stays where it is: maker notes hold offsets of their own.
    """
    out = bytearray(exif)
    directories = list(_directories(exif))
    tags, end = directories[0]
    struct.pack_into(_order(exif) + "L", out, end, 0)  # the next directory would be the thumbnail's
    orientation = number(exif, tags.get(ORIENTATION))
    _set(out, tags, ORIENTATION, 1)
    stop = max(max([end + 4, *(entry.stop for entry in tags.values())]) for tags, end in directories)
    return bytes(out[:stop]), orientation if 1 <= orientation <= 8 else 1


def sized_exif(exif: bytes, width: int, height: int) -> bytes:
    """EXIF that is told the size, where it speaks of one."""
    out = bytearray(exif)
    for tags, _ in _directories(exif):
        for tag in (IMAGE_WIDTH, EXIF_WIDTH):
            _set(out, tags, tag, width)
        for tag in (IMAGE_HEIGHT, EXIF_HEIGHT):
            _set(out, tags, tag, height)
    return bytes(out)


def _set(exif: bytearray, tags: dict[int, _Entry], tag: int, value: int) -> None:
    """Change a number in place, if it is there."""
    if tag not in tags:
        return
    order = ">" if exif[:2] == b"MM" else "<"
    if value < 2**16:
        struct.pack_into(order + "HHLHH", exif, tags[tag].at, tag, 3, 1, value, 0)
    else:
        struct.pack_into(order + "HHLL", exif, tags[tag].at, tag, 4, 1, value)


Tree = dict[int, tuple[int, Any]]
"""Tag -> type and value, which is bytes or, for what points to a directory, a Tree."""


def exif_of_tiff(data: bytes) -> bytes | None:
    """EXIF of its own out of a TIFF's first directory, in the same byte order."""
    tree = _read_tree(data, _first(data), 0, _order(data))
    kept = {tag: value for tag, value in tree.items() if tag in DESCRIPTIVE}
    if not kept:
        return None
    order = _order(data)
    return struct.pack(order + "2sHL", b"MM" if order == ">" else b"II", 42, 8) + written_tree(kept, 8, order)


def copyright_exif(exif: bytes) -> bytes | None:
    """EXIF of its own with artist and copyright; None if it names none or cannot be read."""
    order = _order(exif)
    try:
        tree = _read_tree(exif, _first(exif), 0, order)
    except DamagedExif:
        return None
    kept = {tag: value for tag, value in tree.items() if tag in OWNERS}
    return exif[:4] + struct.pack(order + "L", 8) + written_tree(kept, 8, order) if kept else None


def tiff_with_exif(tiff: bytes, exif: bytes) -> bytes:
    """A TIFF with EXIF's tags beside its own: a new first directory at its end, the old one left unused."""
    order = _order(tiff)
    described = {tag: value for tag, value in _read_tree(exif, _first(exif), 0, order).items() if tag in DESCRIPTIVE}
    own = _read_tree(tiff, _first(tiff), 0, order)
    out = bytearray(tiff) + b"\0" * (len(tiff) % 2)
    struct.pack_into(order + "L", out, 4, len(out))
    return bytes(out) + written_tree(described | own, len(out), order)


def _read_tree(data: bytes, start: int, name: int, order: str) -> Tree:
    """A directory and those that it points to, with their values in the byte order wanted."""
    tree: Tree = {}
    for tag, entry in _directory(data, start)[0].items():
        if tag in CHILDREN.get(name, ()):
            tree[tag] = entry.kind, _read_tree(data, number(data, entry), tag, order)
        elif entry.kind in WIDTHS:  # BigTIFF has others
            tree[tag] = entry.kind, _swapped(data, entry, order)
    return tree


def _swapped(data: bytes, entry: _Entry, order: str) -> bytes:
    """A value's bytes in the byte order wanted."""
    value = data[entry.start : entry.stop]
    width = WIDTHS[entry.kind]
    if width == 1 or order == _order(data):
        return value
    return np.frombuffer(value, f"u{width}").byteswap().tobytes()


def written_tree(tree: Tree, start: int, order: str) -> bytes:
    """A directory, then its values, then the directories that it points to, for a place in the file."""
    table = bytearray(struct.pack(order + "H", len(tree)))
    rest = bytearray()
    values_at = start + 2 + 12 * len(tree) + 4
    for tag in sorted(tree):
        kind, value = tree[tag]
        at = values_at + len(rest)
        if isinstance(value, dict):
            rest += written_tree(value, at, order)
            table += struct.pack(order + "HHLL", tag, 4, 1, at)
            continue
        count = len(value) // WIDTHS[kind] // (2 if kind in (5, 10) else 1)
        table += struct.pack(order + "HHL", tag, kind, count)
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(order + "L", at)
            rest += value + b"\0" * (len(value) % 2)
    return bytes(table) + bytes(4) + bytes(rest)
