"""Pictures made by hand for tests, with what writers of files leave in them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from worker import images
from worker.formats import FORMATS
from worker.images import Picture

WRITTEN = [name for name in FORMATS if name != "HEIC"]
"""What Pillow alone can make samples of; HEIC is in test_heic.py."""
LIMIT = 100_000
EXIF, GPS, INTEROP = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, UNDEFINED: 1}


def decode(data: bytes, max_pixels: int = LIMIT) -> Picture:
    return images.decode(data, max_pixels=max_pixels)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG by hand; `rows` with a filter byte before each."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, depth, colour, 0, 0, 0))
    body = header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def directory(
    tags: dict[int, tuple[int, bytes]], at: int, *, order: str = "<", following: int = 0, big: bool = False
) -> bytes:
    """A TIFF directory for a place in the file, and the values that do not fit into it."""
    number, entry, word = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
    pointer = order + entry[-1]
    table, values = struct.pack(order + number, len(tags)), b""
    values_at = at + len(table) + len(tags) * (struct.calcsize("=" + entry) + word) + word
    for tag, (kind, value) in sorted(tags.items()):
        table += struct.pack(order + entry, tag, kind, len(value) // SIZES[kind])
        if len(value) <= word:
            table += value.ljust(word, b"\0")
        else:
            table += struct.pack(pointer, values_at + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + struct.pack(pointer, following) + values


def tiff(shape: tuple[int, int], bits: list[int], photometric: int, strip: bytes, **options: object) -> bytes:
    """An uncompressed TIFF by hand."""
    order, big = str(options.get("order", "<")), bool(options.get("big"))

    def shorts(*numbers: int) -> tuple[int, bytes]:
        return SHORT, struct.pack(f"{order}{len(numbers)}H", *numbers)

    tags = {
        256: shorts(shape[1]),
        257: shorts(shape[0]),
        258: shorts(*bits),
        259: shorts(1),
        262: shorts(photometric),
        273: shorts(1000),
        277: shorts(len(bits)),
        278: shorts(shape[0]),
        279: shorts(len(strip)),
        339: shorts(*[int(str(options.get("sample_format", 1)))] * len(bits)),
    }
    mark = b"MM" if order == ">" else b"II"
    start = 16 if big else 8
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HL", 42, 8)
    return (mark + head + directory(tags, start, order=order, big=big)).ljust(1000, b"\0") + strip


def exif_block(order: str = "<", orientation: int = 6, **first: tuple[int, bytes]) -> bytes:
    """EXIF as a camera writes it, with the thumbnail last."""

    def pack(code: str, *numbers: int) -> bytes:
        return struct.pack(order + code, *numbers)

    out = (b"MM" if order == ">" else b"II") + pack("HL", 42, 0)
    interop_at = len(out)
    out += directory({1: (ASCII, b"R98\0")}, interop_at, order=order)
    exif_at = len(out)
    own = {
        0x9003: (ASCII, b"2020:02:02 20:20:20\0"),
        0x829A: (RATIONAL, pack("LL", 1, 250)),
        0x927C: (UNDEFINED, b"maker's note"),
        0xA002: (SHORT, pack("H", 3)),
        0xA003: (LONG, pack("L", 2)),
        INTEROP: (LONG, pack("L", interop_at)),
    }
    out += directory(own, exif_at, order=order)
    gps_at = len(out)
    out += directory({1: (ASCII, b"N\0"), 2: (RATIONAL, pack("6L", 48, 1, 8, 1, 14, 1))}, gps_at, order=order)
    first_at = len(out)
    tags = {
        0x100: (SHORT, pack("H", 3)),
        0x101: (SHORT, pack("H", 2)),
        0x10F: (ASCII, b"Canon\0"),
        0x112: (SHORT, pack("H", orientation)),
        0x13B: (ASCII, "Zoë Müller\0".encode()),
        EXIF: (LONG, pack("L", exif_at)),
        GPS: (LONG, pack("L", gps_at)),
    }
    tags |= {int(tag.removeprefix("tag_")): value for tag, value in first.items()}
    thumbnail_at = first_at + len(directory(tags, first_at, order=order))
    thumbnail = {0x201: (LONG, pack("L", thumbnail_at + 30)), 0x202: (LONG, pack("L", 9))}
    out += directory(tags, first_at, order=order, following=thumbnail_at)
    out += directory(thumbnail, thumbnail_at, order=order) + b"THUMBNAIL"
    return out[:4] + pack("L", first_at) + out[8:]


def read_exif(block: bytes | None) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block or b"")
    return exif


def example(image_format: str, **options: object) -> bytes:
    return saved(Image.fromarray(noise(40, 60, 3)), image_format, **options)


def webp(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<L", 4 + len(chunks)) + b"WEBP" + chunks


PROFILE = bytes(16) + b"RGB " + noise(500).tobytes()
"""Of colours, as far as anybody looks."""
