"""Is what a picture carries besides its pixels carried over, once and as it was?"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pictures import (
    ASCII,
    EXIF,
    GPS,
    INTEROP,
    LONG,
    PROFILE,
    SHORT,
    chunk,
    decode,
    directory,
    exif_block,
    noise,
    opened,
    png,
    read_exif,
    saved,
)
from PIL import ExifTags, Image

from worker.images import Extras, encode

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
