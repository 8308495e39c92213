"""Are pictures read and written as they are, with a remedy for what cannot be?"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from pictures import LIMIT, PROFILE, WRITTEN, chunk, decode, example, noise, opened, png, saved, tiff, webp
from PIL import Image

from vdsr.errors import (
    FormatLimit,
    ImageEmpty,
    ImageTooLarge,
    ImageTruncated,
    ImageUnreadable,
    ImageUnsupported,
)
from worker.formats import FORMATS, IMAGE_SUFFIXES, SUFFIX
from worker.images import Extras, check_output, encode, output_format

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
