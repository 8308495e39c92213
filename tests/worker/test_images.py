"""Are pictures read and written as they are, and is whatever is wrong with one only ever an ImageError?"""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageFile

from vdsr.errors import (
    FileTooLarge,
    FormatLimit,
    ImageEmpty,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    ImageUnreadable,
    ImageUnsupported,
)
from worker import images
from worker.formats import FORMATS, IMAGE_SUFFIXES, SUFFIX
from worker.images import Extras, Picture, check_output, encode, output_format

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


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "requested", "expected"),
    [
        ("JPEG", "same", "JPEG"),
        ("PNG", "same", "PNG"),
        ("WEBP", "same", "WEBP"),
        ("TIFF", "same", "TIFF"),
        ("BMP", "same", "BMP"),
        ("AVIF", "same", "AVIF"),
        ("GIF", "same", "PNG"),
        ("GIF", "webp", "WEBP"),
        ("PNG", "jpeg", "JPEG"),
        ("JPEG", "tiff", "TIFF"),
        ("JPEG", "bmp", "BMP"),
    ],
)
def test_the_output_has_the_pictures_own_format_unless_another_is_asked_for(own, requested, expected):
    assert output_format(own, requested) == expected


def test_an_unknown_output_format_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="no output format 'heic'; use one of same, jpeg, png, webp, tiff, bmp, avif"):
        output_format("PNG", "heic")


def test_every_suffix_promises_a_format_that_is_read():
    suffixes = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".avif"}
    suffixes |= {".heic", ".heif", ".hif"}
    assert set(IMAGE_SUFFIXES) == suffixes
    assert set(IMAGE_SUFFIXES.values()) == set(FORMATS) == set(SUFFIX)
    assert all(IMAGE_SUFFIXES[suffix] == image_format for image_format, suffix in SUFFIX.items())


def test_the_formats_are_known_without_importing_pillow_or_numpy():
    script = "import sys, worker.formats; print(sorted({'PIL', 'numpy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- what the bytes are ---------------------------------------------------------------------------------------------


def test_no_bytes_are_an_empty_image():
    with pytest.raises(ImageEmpty, match="the file is empty"):
        decode(b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><title>404", "an HTML page"),
        (b"\n <html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"PK\x03\x04rest", "a ZIP archive"),
        (b"%PDF-1.7", "PDF"),
        (b"\0" * 100, "nothing but zeros"),
        (b"RIFF\0\0\0\0WAVEfmt ", "it begins with b'RIFF"),
        (b"what is this", "it begins with b'what is '"),
    ],
)
def test_other_files_are_unreadable_and_the_message_says_what_was_seen(data, said):
    with pytest.raises(ImageUnreadable) as caught:
        decode(data)
    assert said in str(caught.value)
    assert "none of JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF" in str(caught.value)


@pytest.mark.parametrize("image_format", WRITTEN)
def test_the_format_is_what_the_bytes_are(image_format):
    assert decode(saved(Image.new("RGB", (4, 4), "red"), image_format)).format == image_format


@pytest.mark.parametrize("image_format", ["PPM", "TGA", "ICO", "JPEG2000"])
def test_formats_that_pillow_could_read_besides_are_not_opened(image_format):
    with pytest.raises(ImageUnreadable):
        decode(saved(Image.new("RGB", (16, 16)), image_format))


@pytest.mark.parametrize(
    "magic", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"]
)
def test_a_beginning_without_the_rest_is_truncated(magic):
    for length in range(1, len(magic) + 1):
        with pytest.raises((ImageTruncated, ImageUnreadable)):
            decode(magic[:length])
    with pytest.raises(ImageTruncated):
        decode(magic[:1])


# ---- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_format", "mode", "shape", "dtype"),
    [
        ("JPEG", "L", (5, 7), "uint8"),
        ("JPEG", "RGB", (5, 7, 3), "uint8"),
        ("PNG", "1", (5, 7), "uint8"),
        ("PNG", "L", (5, 7), "uint8"),
        ("PNG", "LA", (5, 7, 2), "uint8"),
        ("PNG", "RGB", (5, 7, 3), "uint8"),
        ("PNG", "RGBA", (5, 7, 4), "uint8"),
        ("PNG", "P", (5, 7, 3), "uint8"),
        ("PNG", "I;16", (5, 7), "uint16"),
        ("WEBP", "RGB", (5, 7, 3), "uint8"),
        ("TIFF", "1", (5, 7), "uint8"),
        ("TIFF", "L", (5, 7), "uint8"),
        ("TIFF", "LA", (5, 7, 2), "uint8"),
        ("TIFF", "RGB", (5, 7, 3), "uint8"),
        ("TIFF", "RGBA", (5, 7, 4), "uint8"),
        ("TIFF", "P", (5, 7, 3), "uint8"),
        ("TIFF", "I;16", (5, 7), "uint16"),
        ("BMP", "1", (5, 7), "uint8"),
        ("BMP", "L", (5, 7), "uint8"),
        ("BMP", "RGB", (5, 7, 3), "uint8"),
        ("GIF", "L", (5, 7), "uint8"),
        ("GIF", "P", (5, 7, 3), "uint8"),
    ],
)
def test_gray_stays_gray_and_depth_is_kept(image_format, mode, shape, dtype):
    colours = Image.fromarray(noise(5, 7, 3))
    image = (
        colours.quantize(16) if mode == "P" else Image.new(mode, (7, 5)) if mode == "I;16" else colours.convert(mode)
    )
    pixels = decode(saved(image, image_format)).pixels
    assert pixels.shape == shape
    assert pixels.dtype == dtype


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_gray_is_kept_in_tiff_of_either_byte_order(order):
    values = [0, 1, 255, 256, 40_000, 65_535]
    picture = decode(tiff((2, 3), [16], 1, struct.pack(order + "6H", *values), order=order))
    assert picture.pixels.tolist() == [[0, 1, 255], [256, 40_000, 65_535]]
    assert picture.pixels.dtype == np.uint16


def test_16_bit_gray_is_kept_in_png():
    rows = b"\0" + struct.pack(">3H", 0, 256, 65_535)
    assert decode(png(3, 1, 16, 0, rows)).pixels.tolist() == [[0, 256, 65_535]]


def test_16_bit_gray_whose_zero_is_white_is_turned_round():
    assert decode(tiff((1, 2), [16], 0, struct.pack("<2H", 0, 60_000))).pixels.tolist() == [[65_535, 5_535]]


def test_8_bit_gray_whose_zero_is_white_is_turned_round_once():
    assert decode(tiff((1, 2), [8], 0, bytes([0, 250]))).pixels.tolist() == [[255, 5]]


def test_one_bit_becomes_gray_and_the_note_says_so():
    picture = decode(png(8, 1, 1, 0, b"\0\xa0"))
    assert picture.pixels.tolist() == [[255, 0, 255, 0, 0, 0, 0, 0]]
    assert picture.notes == ("1-bit became 8-bit gray",)


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x40", 1, [[0, 255], [255, 0]]),
        (2, b"\x60", 2, [[85, 255], [170, 0]]),
        (4, b"\x2a", 10, [[34, 255], [170, 0]]),
        (8, b"\x55\xaa", 170, [[85, 255], [170, 0]]),
    ],
)
def test_a_transparent_gray_becomes_alpha_at_every_depth(depth, row, transparent, expected):
    data = png(2, 1, depth, 0, b"\0" + row, chunk(b"tRNS", struct.pack(">H", transparent)))
    assert decode(data).pixels.tolist() == [expected]


def test_a_transparent_colour_becomes_alpha():
    data = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", struct.pack(">3H", 4, 5, 6)))
    assert decode(data).pixels.tolist() == [[[1, 2, 3, 255], [4, 5, 6, 0]]]


def test_a_palette_keeps_its_transparency():
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0])) + chunk(b"tRNS", bytes([128]))
    assert decode(png(2, 1, 8, 3, b"\0\0\1", palette)).pixels.tolist() == [[[255, 0, 0, 128], [0, 255, 0, 255]]]


def test_a_transparent_gif_keeps_its_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = decode(saved(image, "GIF", transparency=1)).pixels
    assert pixels[0, 0].tolist() == [255, 0, 0, 255]
    assert pixels[0, 1, 3] == 0


def test_a_gray_palette_becomes_gray_unless_a_profile_for_colours_comes_with_it():
    palette = chunk(b"PLTE", bytes([9, 9, 9, 200, 200, 200]))
    profile = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(b"profile"))
    assert decode(png(2, 1, 8, 3, b"\0\0\1", palette)).pixels.tolist() == [[9, 200]]
    assert decode(png(2, 1, 8, 3, b"\0\0\1", profile, palette)).pixels.tolist() == [[[9] * 3, [200] * 3]]


# ---- what would be harmed -------------------------------------------------------------------------------------------

HARMED = {
    "TIFF, gray and alpha": (tiff((1, 1), [16, 16], 1, bytes(4)), "2 x 16 bits per pixel"),
    "TIFF, CMYK, 16 bits": (tiff((1, 1), [16] * 4, 5, bytes(8)), "4 x 16 bits per pixel"),
    "TIFF, mixed bits": (tiff((1, 1), [16, 8, 8], 2, bytes(4)), "3 x 16 bits per pixel"),
    "TIFF, 12 bits": (tiff((1, 2), [12], 1, bytes(3)), "1 x 12 bits per pixel"),
    "TIFF, 32 bits": (tiff((1, 1), [32], 1, bytes(4)), "1 x 32 bits per pixel"),
    "TIFF, float": (tiff((1, 1), [32], 1, bytes(4), sample_format=3), "floating point"),
    "TIFF, signed": (tiff((1, 1), [16], 1, bytes(2), sample_format=2), "signed"),
    "TIFF, signed bytes": (tiff((1, 1), [8], 1, bytes(1), sample_format=2), "signed"),
    "JPEG, CMYK": (saved(Image.new("CMYK", (8, 8)), "JPEG"), "its colours are CMYK"),
    "TIFF, CMYK": (saved(Image.new("CMYK", (8, 8)), "TIFF"), "its colours are CMYK"),
    "TIFF, LAB": (saved(Image.new("LAB", (8, 8)), "TIFF"), "colour mode LAB"),
}


@pytest.mark.parametrize("name", HARMED)
def test_what_would_lose_depth_or_change_colour_is_refused_with_a_remedy(name):
    data, said = HARMED[name]
    with pytest.raises(ImageUnsupported) as caught:
        decode(data)
    assert said in str(caught.value)
    assert "convert the picture" in str(caught.value)


# ---- sizes and bombs ------------------------------------------------------------------------------------------------


def webp(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<L", 4 + len(chunks)) + b"WEBP" + chunks


def resized(image_format: str, width: int, height: int) -> bytes:
    """A small file whose header declares another size."""
    data = bytearray(saved(Image.new("RGB", (8, 8)), image_format))
    if image_format == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif image_format == "BMP":
        struct.pack_into("<LL", data, 18, width, height)
    elif image_format == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif image_format == "WEBP":
        struct.pack_into("<HH", data, 26, width, height)
    elif image_format == "AVIF":
        struct.pack_into(">LL", data, data.index(b"ispe") + 8, width, height)
    elif image_format == "TIFF":
        return tiff((height, width), [8], 1, b"")
    else:
        return png(width, height, 8, 2, b"")
    return bytes(data)


@pytest.mark.parametrize("image_format", WRITTEN)
def test_too_many_pixels_are_refused_from_the_header(image_format):
    with pytest.raises(ImageTooLarge) as caught:
        decode(resized(image_format, 16_000, 12_000), 100_000_000)
    error = caught.value
    assert (error.width, error.height, error.limit) == (16_000, 12_000, 100_000_000)
    assert "192,000,000 pixels, over the limit of 100,000,000" in str(error)
    assert "VDSR_MAX_PIXELS" in str(error)


def test_a_png_of_ten_thousand_megapixels_is_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge):
        decode(png(100_000, 100_000, 8, 2, b""), 400_000_000)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "data",
    [
        webp(b"VP8X" + struct.pack("<L", 10) + bytes(4) + b"\xff\xff\xff" * 2),
        webp(b"VP8L" + struct.pack("<LBL", 6, 0x2F, 0x0FFFFFFF) + b"\0"),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xf9\4\x08\0\0\0\0,"
        + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\2L\1\0;",
    ],
    ids=["canvas of a WebP", "lossless WebP", "first frame of a GIF beyond its screen"],
)  # fmt: skip
def test_what_pillow_allocates_on_opening_is_checked_before(data):
    with pytest.raises(ImageTooLarge):
        decode(data)


def test_a_tile_that_is_larger_than_the_limit_is_refused():
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65_520, 323: 65_520, 324: 500, 325: 8}
    entries = {tag: (LONG, struct.pack("<L", value)) for tag, value in tags.items()}
    with pytest.raises(ImageTooLarge) as caught:
        decode(b"II*\0\x08\0\0\0" + directory(entries, 8) + bytes(500))
    assert (caught.value.width, caught.value.height) == (65_520, 65_520)


def test_the_limit_is_ours_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(saved(Image.new("L", (10, 10)), "PNG"), 100).pixels.shape == (10, 10)
    with pytest.raises(ImageTooLarge):
        decode(saved(Image.new("L", (10, 10)), "PNG"), 99)


MEGABYTE = bytes(1 << 20)
BOMBS = {
    "iCCP": [chunk(b"iCCP", b"icc\0\0" + zlib.compress(MEGABYTE * 100))],
    "zTXt": [chunk(b"zTXt", b"key\0\0" + zlib.compress(MEGABYTE * 100))],
    "iTXt": [chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(MEGABYTE * 100))],
    "many zTXt": [chunk(b"zTXt", b"key\0\0" + zlib.compress(MEGABYTE))] * 70,
    "many iCCP": [chunk(b"iCCP", b"icc\0\0" + zlib.compress(MEGABYTE))] * 1000,
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_a_bomb_in_a_chunk_is_unreadable_and_costs_little(name, place):
    before, after = (BOMBS[name], []) if place == "before the pixels" else ([], BOMBS[name])
    data = png(1, 1, 8, 0, b"\0\0", *before, after=b"".join(after))
    start = time.perf_counter()
    with pytest.raises(ImageUnreadable):
        decode(data)
    assert time.perf_counter() - start < 2


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def in_jpeg(*segments: bytes) -> bytes:
    data = saved(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def in_gif(extensions: bytes) -> bytes:
    data = saved(Image.new("P", (8, 8)), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + extensions + data[start:]


ENDLESS = {
    "markers of a JPEG": in_jpeg(segment(0xFE, b"") * 1_000_000),
    "padding in a JPEG": in_jpeg(b"\xff" * 4_000_000),
    "stray bytes in a JPEG": in_jpeg(segment(0xFE, b""), bytes(4_000_000)),
    "EXIF of a JPEG": in_jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 300),
    "chunks of a PNG": png(1, 1, 8, 0, b"\0\0", chunk(b"teSt", b"") * 500_000),
    "empty pixels of a PNG": png(1, 1, 8, 0, b"\0\0", chunk(b"IDAT", b"") * 500_000),
    "a GIF's comment": in_gif(b"!\xfe" + b"\1a" * 2_000_000 + b"\0"),
    "a GIF's comments": in_gif(b"!\xfe\1a\0" * 500_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_comes_before_the_pixels_must_come_to_an_end(name):
    start = time.perf_counter()
    with pytest.raises(ImageUnreadable, match=r"has more than .* open it and save it again"):
        decode(ENDLESS[name])
    assert time.perf_counter() - start < 2


def shared_tags(count: int, kind: int = 1, length: int = 500_000, *, pointer: int = 0) -> bytes:
    """A directory for byte 8 whose tags all have the same bytes for their value."""
    tags = b"".join(struct.pack("<HHLL", 1000 + n, kind, length, 8) for n in range(count))
    if pointer:
        tags = struct.pack("<HHLL", EXIF, LONG, 1, pointer) + tags
    return struct.pack("<H", count + bool(pointer)) + tags + bytes(4)


PLAIN_TIFF = tiff((1, 1), [8], 1, b"\7")
TAG_BOMBS = {
    "in the first directory": b"II*\0\x08\0\0\0" + shared_tags(20_000) + bytes(500_000),
    "cut off": b"II*\0\x08\0\0\0" + shared_tags(20_000)[:200_000] + bytes(500_000)[:400_000],
    "in EXIF": b"II*\0" + struct.pack("<L", 8) + shared_tags(0, pointer=26) + shared_tags(20_000) + bytes(500_000),
    "millions of numbers": b"II*\0\x08\0\0\0" + shared_tags(1, SHORT, 2_000_000) + bytes(4_000_000),
    "BigTIFF": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 10**6) + bytes(4_000_000),
}


@pytest.mark.parametrize("name", TAG_BOMBS)
def test_tags_that_share_their_bytes_are_refused_before_they_fill_the_memory(name):
    start = time.perf_counter()
    with pytest.raises(ImageUnreadable, match="the tags of this TIFF claim more than"):
        decode(TAG_BOMBS[name])
    assert time.perf_counter() - start < 2


def test_exif_of_a_jpeg_whose_tags_share_their_bytes_is_left_out():
    block = b"II*\0\x08\0\0\0" + shared_tags(40_000, length=400_000)
    parts = [block[at : at + 65_000] for at in range(0, len(block), 65_000)]
    data = in_jpeg(*(segment(0xE1, b"Exif\0\0" + part) for part in parts))
    data = data.replace(b"JFIF", b"JFXX")  # then Pillow looks into EXIF for the resolution
    start = time.perf_counter()
    assert decode(data).notes == ("EXIF was damaged and is left out",)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 65_500), (65_500, 1), (1, 65_535), (65_535, 1)])
@pytest.mark.parametrize("image_format", WRITTEN)
def test_needles_are_read_as_far_as_the_format_has_them(image_format, shape):
    image = Image.new("L", (shape[1], shape[0]), 7)
    if image_format == "AVIF" and max(shape) > 32_768:
        with pytest.raises(ImageUnreadable):  # libavif writes what it does not read
            decode(saved(image, image_format))
        return
    if max(shape) > images.MAX_SIDE.get(image_format, 65_535):
        with pytest.raises((OSError, ValueError), match=r"encod|broken data"):  # there is no such file
            saved(image, image_format)
        return
    assert decode(saved(image, image_format)).pixels.shape[:2] == shape


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, 0.5])
def test_float_tiffs_are_refused_whatever_is_in_them(value):
    for bits, code in ((32, "f"), (64, "d")):
        data = tiff((1, 2), [bits], 1, struct.pack(f"<2{code}", value, value), sample_format=3)
        with pytest.raises(ImageUnsupported, match="floating point"):
            decode(data)


def test_a_wrong_suffix_changes_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    for image_format in WRITTEN:
        data = saved(Image.new("RGB", (4, 4), "red"), image_format)
        for suffix in IMAGE_SUFFIXES:
            (tmp_path / "in" / f"{image_format}{suffix}").write_bytes(data)
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    rows = run_line(pipeline(tmp_path / "in", score=False), names)
    assert [(row.outcome, row.width) for row in rows] == [("done", 8)] * (len(WRITTEN) * len(IMAGE_SUFFIXES))


# ---- damage ---------------------------------------------------------------------------------------------------------


def example(image_format: str, **options: object) -> bytes:
    return saved(Image.fromarray(noise(40, 60, 3)), image_format, **options)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds odd
@pytest.mark.parametrize("eighths", range(1, 8))
@pytest.mark.parametrize("image_format", [*WRITTEN, "TIFF, deflate", "JPEG, progressive", "WEBP, lossless"])
def test_a_file_that_ends_early_is_truncated(image_format, eighths):
    name, _, kind = image_format.partition(", ")
    options = {"deflate": {"compression": "tiff_adobe_deflate"}, "progressive": {"progressive": True}, "": {}}
    data = example(name, **options.get(kind, {"lossless": True}))
    with pytest.raises(ImageTruncated) as caught:
        decode(data[: len(data) * eighths // 8])
    assert "copy it again from its source" in str(caught.value)


def test_a_damaged_checksum_is_unreadable_with_its_cause_chained():
    data = bytearray(png(1, 1, 8, 0, b"\0\0"))
    data[16] ^= 1
    with pytest.raises(ImageUnreadable, match="this PNG is damaged") as caught:
        decode(bytes(data))
    assert caught.value.__cause__ is not None


def test_a_fault_of_ours_is_not_taken_for_the_pictures(monkeypatch):
    def broken(image: Image.Image) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("worker.images.decoding.to_array", broken)
    with pytest.raises(TypeError, match="a bug"):
        decode(example("PNG"))


def test_a_time_limit_that_strikes_inside_pillow_rises(monkeypatch):
    class SoftTimeLimitExceeded(Exception):
        """As billiard's."""

    def late(self: ImageFile.ImageFile) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(ImageFile.ImageFile, "load", late)
    with pytest.raises(SoftTimeLimitExceeded):
        decode(example("PNG"))


def test_pillow_is_never_told_to_accept_truncated_files():
    with pytest.raises(ImageTruncated):
        decode(example("JPEG")[:1000])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("image_format", WRITTEN)
def test_too_little_memory_is_not_the_pictures_fault(image_format):
    """In a process whose address space is too small for the picture and large enough for all else."""
    script = """
import io, resource, sys
from pathlib import Path
from PIL import Image
from worker import images
data = Path(sys.argv[1]).read_bytes()
Image.preinit()
images.decode(Path(sys.argv[2]).read_bytes(), max_pixels=10**9)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (15 << 20), now + (15 << 20)))
try:
    images.decode(data, max_pixels=10**9)
except MemoryError as exc:
    print(exc)
"""
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large"), Path(folder, "small")
        large.write_bytes(saved(Image.new("L" if image_format == "GIF" else "RGB", (5000, 5000)), image_format))
        small.write_bytes(saved(Image.new("L" if image_format == "GIF" else "RGB", (9, 9)), image_format))
        command = [sys.executable, "-c", script, str(large), str(small)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"there was not enough memory to decode a {image_format}" in found.stdout, found


@pytest.mark.parametrize(
    "error",
    [
        ImageEmpty(),
        ImageUnreadable("why"),
        ImageTruncated("why"),
        ImageUnsupported("why"),
        ImageTooLarge(20, 10, 100, "VDSR_MAX_PIXELS"),
        FileTooLarge(20, 10),
        FormatLimit("JPEG", 65_500, 70_000, 10),
    ],
)
def test_errors_survive_the_way_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


SEEDS = {
    "JPEG": saved(Image.fromarray(noise(6, 8, 3)), "JPEG", exif=b"Exif\0\0" + exif_block()),
    "MPO": saved(Image.new("RGB", (8, 8)), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]),
    "PNG": saved(Image.fromarray(noise(6, 8, 4)), "PNG", exif=exif_block(), icc_profile=bytes(99)),
    "PNG, palette": saved(Image.fromarray(noise(6, 8, 3)).quantize(9), "PNG", transparency=b"\0\x80"),
    "APNG": saved(Image.new("RGB", (8, 8)), "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
    "WEBP": saved(Image.fromarray(noise(6, 8, 3)), "WEBP", exif=exif_block()),
    "WEBP, lossless": saved(Image.fromarray(noise(6, 8, 4)), "WEBP", lossless=True),
    "TIFF": encode(noise(6, 8, 3), "TIFF", Extras(exif=exif_block(), compression="raw"), quality=None),
    "TIFF, LZW": encode(noise(6, 8), "TIFF", Extras(exif=exif_block(), compression="tiff_lzw"), quality=None),
    "TIFF, fax": saved(Image.new("1", (20, 20)), "TIFF", compression="group4"),
    "BMP": saved(Image.fromarray(noise(6, 8, 3)), "BMP"),
    "BMP, palette": saved(Image.fromarray(noise(6, 8, 3)).quantize(9), "BMP"),
    "GIF": saved(Image.fromarray(noise(6, 8, 3)).quantize(9), "GIF", save_all=True, transparency=1, disposal=2,
                 append_images=[Image.fromarray(noise(6, 8, 3)[::-1]).quantize(9)]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEDS)
def test_damaged_bytes_give_a_picture_or_an_image_error_and_nothing_else(name):
    seed = SEEDS[name]

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(seed) - 1), st.integers(0, 255)), min_size=1, max_size=8),
        st.one_of(st.none(), st.integers(1, len(seed))),
    )
    def check(changes: list[tuple[int, int]], end: int | None) -> None:
        data = bytearray(seed)
        for place, value in changes:
            data[place] = value
        try:
            picture = decode(bytes(data[:end]))
        except ImageError:
            return
        assert picture.pixels.dtype in (np.uint8, np.uint16)
        encode(picture.pixels, "PNG", picture.extras, quality=None)
        encode(picture.pixels, "TIFF", picture.extras, quality=None)

    check()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_damage_to_exif_fails_the_picture(image_format):
    block = exif_block()

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(block) - 1), st.integers(0, 255)), min_size=1, max_size=8))
    def check(changes: list[tuple[int, int]]) -> None:
        damaged = bytearray(block)
        for place, value in changes:
            damaged[place] = value
        if image_format == "TIFF":  # its own directory is no EXIF: damage the ones that hang on it
            whole = bytearray(encode(noise(6, 8), "TIFF", Extras(exif=block), quality=None))
            for place, value in changes:
                whole[-1 - place % 200] = value
            assert sorted(decode(bytes(whole)).pixels.shape[:2]) == [6, 8]  # whichever way it is turned
        else:
            picture = decode(saved(Image.new("RGB", (8, 8)), image_format, exif=b"Exif\0\0" + bytes(damaged)))
            assert picture.pixels.shape == (8, 8, 3)
            assert decode(encode(picture.pixels, "TIFF", picture.extras, quality=None)).pixels.shape == (8, 8, 3)

    check()


# ---- orientation and EXIF -------------------------------------------------------------------------------------------

TURNED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF, LZW"])
def test_orientation_is_applied_once(image_format, orientation):
    blocks = np.kron(np.array(TURNED[1], np.uint8) * 40, np.ones((8, 8), np.uint8))
    name, _, compression = image_format.partition(", ")
    options: dict[str, object] = {"exif": b"Exif\0\0" + exif_block(orientation=orientation)}
    if name == "TIFF":
        options = {"tiffinfo": {274: orientation}, "compression": "tiff_lzw" if compression else "raw"}
    picture = decode(saved(Image.fromarray(blocks), name, quality=100, lossless=True, **options) if name != "TIFF"
                     else saved(Image.fromarray(blocks), name, **options))  # fmt: skip
    pixels = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
    assert (pixels[4::8, 4::8] // 40).tolist() == TURNED[orientation]
    assert read_exif(picture.extras.exif)[0x112] == 1
    again = decode(encode(picture.pixels, name, picture.extras, quality=100))
    assert again.pixels.shape == picture.pixels.shape


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_is_upright(orientation):
    data = saved(Image.new("L", (3, 2)), "PNG", exif=exif_block(orientation=orientation))
    picture = decode(data)
    assert picture.pixels.shape == (2, 3)
    assert read_exif(picture.extras.exif)[0x112] == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_loses_its_thumbnail_and_otherwise_stays_where_it_is(order):
    block = exif_block(order)
    kept = decode(saved(Image.new("L", (3, 2)), "PNG", exif=block)).extras.exif
    assert kept is not None
    assert b"THUMBNAIL" not in kept
    assert not read_exif(kept).get_ifd(ExifTags.IFD.IFD1)
    assert kept.index(b"maker's note") == block.index(b"maker's note")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_is_carried_from_format_to_format_and_told_the_new_size(source, target, order):
    block = exif_block(order, orientation=1)
    image = Image.new("RGB", (3, 2))
    if source == "TIFF":
        data = encode(np.asarray(image), "TIFF", Extras(exif=block), quality=None)
    else:
        data = saved(image, source, exif=b"Exif\0\0" + block)
    result = encode(noise(20, 30, 3), target, decode(data).extras, quality=None)
    exif = opened(result).getexif()
    assert exif[0x10F] == "Canon"
    assert exif[0x13B].encode("latin-1") == "Zoë Müller".encode()
    assert exif[0x112] == 1
    own = exif.get_ifd(EXIF)
    assert own[0x9003] == "2020:02:02 20:20:20"
    assert own[0x829A] == 1 / 250
    assert own[0x927C] == b"maker's note"
    assert (own[0xA002], own[0xA003]) == (30, 20)
    assert exif.get_ifd(INTEROP) == {1: "R98"}
    assert exif.get_ifd(GPS) == {1: "N", 2: (48.0, 8.0, 14.0)}
    assert (exif.get(0x100, 30), exif.get(0x101, 20)) == (30, 20)
    assert opened(result).size == (30, 20)


def test_a_size_beyond_16_bits_fits_into_exif():
    extras = decode(saved(Image.new("L", (3, 2)), "PNG", exif=exif_block())).extras
    exif = opened(encode(np.zeros((1, 70_000), np.uint8), "PNG", extras, quality=None)).getexif()
    assert exif[0x100] == 70_000
    assert exif.get_ifd(EXIF)[0xA002] == 70_000


def test_the_structure_of_a_tiff_does_not_leak_into_exif():
    described = {270: "a view", 274: 3, 305: "scanner", 317: 2, 33432: "me"}
    data = saved(Image.new("L", (64, 64)), "TIFF", compression="tiff_lzw", tiffinfo=described, dpi=(300, 300))
    exif = opened(encode(noise(9, 9), "PNG", decode(data).extras, quality=None)).getexif()
    assert dict(exif) == {270: "a view", 274: 1, 305: "scanner", 33432: "me"}


def test_structure_that_exif_claims_does_not_reach_a_tiff():
    claims = {"tag_258": (SHORT, b"\1\0"), "tag_259": (SHORT, b"\7\0"), "tag_273": (LONG, bytes(4))}
    extras = decode(saved(Image.new("L", (3, 2)), "PNG", exif=exif_block(**claims))).extras
    tags = opened(encode(noise(20, 30), "TIFF", extras, quality=None)).tag_v2
    assert (tags[256], tags[257], tags[258], tags[259]) == (30, 20, (8,), 8)
    assert tags[271] == "Canon"


def test_exif_that_a_jpeg_cannot_hold_is_left_out_and_a_png_holds_it():
    block = exif_block(tag_270=(ASCII, b"x" * 70_000 + b"\0"))
    extras = decode(saved(Image.new("L", (3, 2)), "PNG", exif=block)).extras
    assert "exif" not in opened(encode(noise(9, 9), "JPEG", extras, quality=None)).info
    assert len(opened(encode(noise(9, 9), "PNG", extras, quality=None)).getexif()[270]) == 70_000


@pytest.mark.parametrize(
    "block",
    [
        b"nonsense",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\xff\xff",
        exif_block()[:40],
        b"II*\0\x08\0\0\0" + directory({EXIF: (LONG, b"\x08\0\0\0")}, 8),
        b"II*\0\x08\0\0\0" + directory({GPS: (LONG, b"\xff\xff\0\0")}, 8),
    ],
    ids=["no TIFF", "no directory", "short directory", "cut off", "a loop", "no GPS where it should be"],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_is_left_out_with_a_note(image_format, block):
    picture = decode(saved(Image.new("L", (8, 8)), image_format, exif=b"Exif\0\0" + block))
    assert picture.extras.exif is None
    assert picture.notes == ("EXIF was damaged and is left out",)


def test_exif_over_which_pillow_trips_does_not_fail_the_jpeg():
    tags = {0x11A: (ASCII, b"5\0"), 0x128: (SHORT, b"\2\0")}
    block = b"II*\0\x08\0\0\0" + directory(tags, 8)
    data = saved(Image.new("L", (8, 8)), "JPEG", exif=b"Exif\0\0" + block)
    with pytest.raises(OSError, match="cannot identify"):
        opened(data)
    assert decode(data).notes == ("EXIF was damaged and is left out",)


def test_exif_in_a_png_text_chunk_of_imagemagick_is_read():
    block = exif_block()
    text = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(block):8}\n{block.hex()}\n".encode())
    picture = decode(png(3, 2, 8, 0, bytes(8), chunk(b"zTXt", text)))
    assert picture.pixels.shape == (3, 2)
    assert read_exif(picture.extras.exif)[0x10F] == "Canon"


# ---- colour profiles and resolution ---------------------------------------------------------------------------------

PROFILE = bytes(16) + b"RGB " + noise(500).tobytes()


@pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_colour_profile_is_carried_over(source, target):
    extras = decode(saved(Image.new("RGB", (8, 8)), source, icc_profile=PROFILE)).extras
    assert opened(encode(noise(8, 8, 3), target, extras, quality=None)).info["icc_profile"] == PROFILE


def test_a_profile_larger_than_a_jpeg_marker_is_carried_over():
    profile = noise(200_000).tobytes()
    assert decode(encode(noise(8, 8), "JPEG", Extras(icc_profile=profile), quality=None)).extras.icc_profile == profile


def test_a_profile_for_gray_is_not_put_beside_the_colours_of_a_webp():
    profile = bytes(16) + b"GRAY" + bytes(50)
    assert decode(encode(noise(8, 8), "WEBP", Extras(icc_profile=profile), quality=None)).extras.icc_profile is None
    assert decode(encode(noise(8, 8), "PNG", Extras(icc_profile=profile), quality=None)).extras.icc_profile == profile


@pytest.mark.parametrize("target", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_the_resolution_is_carried_over(source, target, shape):
    extras = decode(saved(Image.new("RGB", (8, 8)), source, dpi=(300, 150))).extras
    assert extras.dpi == pytest.approx((300, 150), abs=0.02)
    assert decode(encode(noise(*shape), target, extras, quality=None)).extras.dpi == pytest.approx((300, 150), abs=0.02)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "BMP"])
def test_no_resolution_is_made_up(image_format):
    assert decode(encode(noise(8, 8), image_format, Extras(), quality=None)).extras.dpi is None


@pytest.mark.parametrize("dpi", [(0, 0), (2**32 - 1, 2**32 - 1)])
def test_a_resolution_that_cannot_be_meant_is_left_out(dpi):
    metres = chunk(b"pHYs", struct.pack(">LLB", *dpi, 1))
    assert decode(png(1, 1, 8, 0, b"\0\0", metres)).extras.dpi is None


# ---- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_read_and_the_note_says_of_how_many(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    picture = decode(saved(frames[0], image_format, save_all=True, append_images=frames[1:]))
    red, green, blue = picture.pixels[4, 4, :3].tolist()
    assert red > 250
    assert max(green, blue) < 5
    assert picture.notes == ("first of 3 frames",)


def test_a_damaged_later_frame_does_not_fail_the_first():
    frames = [Image.fromarray(noise(40, 40)), Image.fromarray(noise(40, 40)[::-1])]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    second = data.rindex(b"!\xf9")
    picture = decode(data[: second + 14])
    assert np.array_equal(picture.pixels, noise(40, 40))
    assert picture.notes == ("first of several frames; a later one is damaged",)


def test_directories_of_a_tiff_that_lead_in_a_circle_are_counted_once():
    data = bytearray(tiff((1, 1), [8], 1, b"\7"))
    struct.pack_into("<L", data, 8 + 2 + 10 * 12, 8)
    picture = decode(bytes(data))
    assert picture.pixels.tolist() == [[7]]
    assert picture.notes == ()


@pytest.mark.parametrize("kind", ["raw", "tiff_lzw"])
def test_a_tiff_of_a_million_pages_is_not_counted_to_the_end(kind):
    data = bytearray(saved(Image.new("L", (9, 9)), "TIFF", compression=kind))
    pages = 1_000_000
    start = len(data)
    (first,) = struct.unpack_from("<L", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<L", data, first + 2 + tags * 12, start)
    data += b"".join(struct.pack("<HL", 0, start + 6 * (page + 1)) for page in range(pages - 1)) + bytes(6)
    begin = time.perf_counter()
    assert decode(bytes(data)).notes == ("first of more than 1,000 frames",)
    assert time.perf_counter() - begin < 2


def test_a_gif_of_a_million_frames_is_not_counted_to_the_end():
    data = saved(Image.new("P", (1, 1)), "GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    begin = time.perf_counter()
    picture = decode(data[:start] + data[start:-1] * 1_000_000 + b";")
    assert picture.notes == ("first of more than 1,000 frames",)
    assert time.perf_counter() - begin < 2


def test_a_webp_of_a_hundred_thousand_frames_is_not_counted_to_the_end():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    start = data.index(b"ANMF")
    frame = data[start : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")]
    begin = time.perf_counter()
    assert decode(webp(data[12:start] + frame * 100_000)).notes == ("first of more than 1,000 frames",)
    assert time.perf_counter() - begin < 5


# ---- writing --------------------------------------------------------------------------------------------------------

HELD = [
    *(("PNG", shape, "uint8") for shape in [(9, 13), (9, 13, 2), (9, 13, 3), (9, 13, 4)]),
    ("PNG", (9, 13), "uint16"),
    *(("TIFF", shape, "uint8") for shape in [(9, 13), (9, 13, 2), (9, 13, 3), (9, 13, 4)]),
    ("TIFF", (9, 13), "uint16"),
    *(("BMP", shape, "uint8") for shape in [(9, 13), (9, 13, 3), (9, 13, 4)]),
    *(("WEBP", shape, "uint8") for shape in [(9, 13, 3), (9, 13, 4)]),
]


@pytest.mark.parametrize(("image_format", "shape", "dtype"), HELD)
@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", None])
def test_what_was_written_without_loss_is_read_back_as_it_was(image_format, shape, dtype, compression):
    pixels = noise(*shape, dtype=dtype)
    data = encode(pixels, image_format, Extras(lossless=True, compression=compression), quality=None)
    again = decode(data)
    assert again.format == image_format
    assert again.pixels.dtype == dtype
    assert np.array_equal(again.pixels, pixels)


def test_pixels_that_do_not_lie_in_one_piece_are_written_as_they_are():
    pixels = noise(20, 30, 4)[::-2, ::3]
    for image_format in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(decode(encode(pixels, image_format, Extras(), quality=None)).pixels, pixels)
    wide = noise(20, 30, dtype="uint16").T
    assert np.array_equal(decode(encode(wide, "PNG", Extras(), quality=None)).pixels, wide)


@pytest.mark.parametrize("image_format", ["BMP", "WEBP"])
def test_gray_and_alpha_become_colours_and_alpha_where_the_format_has_no_such_kind(image_format):
    pixels = noise(9, 13, 2)
    again = decode(encode(pixels, image_format, Extras(lossless=True), quality=None)).pixels
    assert np.array_equal(again, pixels[..., [0, 0, 0, 1]])


def test_gray_becomes_three_equal_channels_in_webp():
    pixels = noise(9, 13)
    again = decode(encode(pixels, "WEBP", Extras(lossless=True), quality=None)).pixels
    assert np.array_equal(again, np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("quality", "first_step", "sampling"), [(None, 2, (1, 1)), (95, 2, (1, 1)), (90, 3, (1, 1)), (75, 8, (2, 2))]
)
def test_jpeg_keeps_full_colour_from_quality_90_up(quality, first_step, sampling):
    image = opened(encode(noise(40, 40, 3), "JPEG", Extras(), quality=quality))
    assert image.quantization[0][0] == first_step
    assert image.layer[0][1:3] == sampling
    assert "progressive" not in image.info


def test_a_lossless_webp_stays_lossless_whatever_the_quality():
    pixels = noise(16, 16, 4)
    source = decode(saved(Image.fromarray(pixels), "WEBP", lossless=True, exact=True, icc_profile=PROFILE))
    assert source.extras.lossless
    assert np.array_equal(decode(encode(pixels, "WEBP", source.extras, quality=50)).pixels, pixels)


def test_a_lossy_webp_stays_lossy_and_obeys_the_quality():
    pixels = noise(64, 64, 3)
    extras = decode(saved(Image.fromarray(pixels), "WEBP")).extras
    assert not extras.lossless
    sizes = [len(encode(pixels, "WEBP", extras, quality=quality)) for quality in (50, 90, None)]
    assert sizes[0] < sizes[1] == sizes[2]


def test_an_animated_lossless_webp_is_known_as_lossless():
    frames = [Image.fromarray(noise(16, 16, 3)), Image.fromarray(noise(16, 16, 3)[::-1])]
    assert decode(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)).extras.lossless


@pytest.mark.parametrize(
    ("found", "written"),
    [
        ("raw", "raw"),
        ("packbits", "packbits"),
        ("tiff_lzw", "tiff_lzw"),
        ("tiff_adobe_deflate", "tiff_adobe_deflate"),
        ("tiff_deflate", "tiff_adobe_deflate"),
    ],
)
def test_a_tiff_keeps_its_compression(found, written):
    picture = decode(example("TIFF", compression=found))
    assert picture.notes == ()
    assert opened(encode(picture.pixels, "TIFF", picture.extras, quality=None)).info["compression"] == written


def test_a_tiff_compressed_as_jpeg_becomes_deflate_and_the_note_says_so():
    picture = decode(example("TIFF", compression="jpeg"))
    assert picture.notes == ("jpeg compression becomes deflate where the output is TIFF",)
    result = opened(encode(picture.pixels, "TIFF", picture.extras, quality=None))
    assert result.info["compression"] == "tiff_adobe_deflate"


# ---- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_refused_for_jpeg_before_and_while_writing(channels):
    pixels = noise(8, 8, channels)
    with pytest.raises(ImageUnsupported, match=r"JPEG holds no transparency.*--format png"):
        check_output(pixels, (16, 16), "JPEG", max_pixels=LIMIT)
    with pytest.raises(ImageUnsupported, match="JPEG holds no transparency"):
        encode(pixels, "JPEG", Extras(), quality=None)


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "BMP"])
def test_16_bits_are_refused_where_there_are_8(image_format):
    pixels = noise(8, 8, dtype="uint16")
    with pytest.raises(ImageUnsupported, match=f"{image_format} holds 8 bits per channel.*--format png"):
        check_output(pixels, (16, 16), image_format, max_pixels=LIMIT)
    with pytest.raises(ImageUnsupported, match="holds 8 bits"):
        encode(pixels, image_format, Extras(), quality=None)


@pytest.mark.parametrize(("image_format", "limit"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_a_side_beyond_the_formats_limit_is_refused_before_the_work(image_format, limit):
    pixels = np.zeros((1, 10, 3), np.uint8)
    check_output(pixels, (1, limit), image_format, max_pixels=LIMIT)
    for size in ((1, limit + 1), (limit + 1, 1)):
        with pytest.raises(FormatLimit, match=f"{image_format} allows {limit:,} px.*--format png"):
            check_output(pixels, size, image_format, max_pixels=LIMIT)


@pytest.mark.parametrize(("image_format", "limit"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_a_side_at_the_formats_limit_is_written(image_format, limit):
    assert opened(encode(np.zeros((1, limit, 3), np.uint8), image_format, Extras(), quality=None)).size == (limit, 1)


def test_too_many_pixels_are_refused_before_the_work_and_the_setting_is_named():
    pixels = np.zeros((100, 100), np.uint8)
    check_output(pixels, (250, 400), "PNG", max_pixels=LIMIT)
    with pytest.raises(ImageTooLarge, match=r"100,400 pixels, over the limit of 100,000.*VDSR_MAX_OUTPUT_PIXELS"):
        check_output(pixels, (251, 400), "PNG", max_pixels=LIMIT)


def test_a_file_beyond_4_gib_is_refused_before_the_work():
    pixels = np.zeros((1, 1, 4), np.uint8)
    check_output(pixels, (32_768, 32_768), "PNG", max_pixels=2**31)
    for image_format in ("TIFF", "BMP"):
        with pytest.raises(ImageUnsupported, match="4 GiB"):
            check_output(pixels, (32_768, 32_768), image_format, max_pixels=2**31)
