"""Is whatever is wrong with a picture only ever an ImageError, in little time and memory?"""

from __future__ import annotations

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
from pictures import (
    EXIF,
    LONG,
    SHORT,
    WRITTEN,
    chunk,
    decode,
    directory,
    example,
    exif_block,
    noise,
    png,
    saved,
    tiff,
    webp,
)
from PIL import Image, ImageFile

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
from worker.formats import IMAGE_SUFFIXES
from worker.images import Extras, encode

# ---- sizes and bombs ------------------------------------------------------------------------------------------------


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
