"""Are pictures of 16 bits a channel read, upscaled and written with all of them?"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line
from PIL import Image

from vdsr.errors import ImageTooLarge, ImageTruncated, ImageUnreadable, ImageUnsupported
from vdsr.upscale import Upscaler
from worker.images import Extras, Header, Picture, check_output, decode, encode


def read(data: bytes, max_pixels: int = 100_000) -> Picture:
    return decode(data, max_pixels=max_pixels)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65_536, shape, dtype=np.uint16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def filtered(pixels: np.ndarray) -> bytes:
    """Rows by PNG's five filters in turn, byte by byte as the specification has them."""
    rows = np.ascontiguousarray(pixels, ">u2").reshape(len(pixels), -1).view(np.uint8).astype(int)
    step = 2 * (pixels.shape[2] if pixels.ndim == 3 else 1)
    out, above = b"", np.zeros(rows.shape[1], int)
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        near = np.abs(np.stack([left, above, corner]) - (left + above - corner))
        paeth = np.choose(near.argmin(0), [left, above, corner])
        guess = [0 * row, left, above, (left + above) // 2, paeth][number % 5]
        out += bytes([number % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def png(pixels: np.ndarray, *before: bytes, interlaced: bool = False) -> bytes:
    """A PNG by hand, with every filter."""
    height, width = pixels.shape[:2]
    color = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2] if pixels.ndim == 3 else 1]
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right] for top, left, down, right in (adam7 if interlaced else [(0, 0, 1, 1)])]
    rows = b"".join(filtered(part) for part in parts if part.size)
    header = struct.pack(">LLBBBBB", width, height, 16, color, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(pixels: np.ndarray, order: str = "<", *, extra: int | None = None, planar: int = 1) -> bytes:
    """An uncompressed TIFF by hand, of one strip."""
    height, width, channels = pixels.shape
    values = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [2 if channels > 2 else 1]}
    values |= {273: [8], 277: [channels], 278: [height], 279: [pixels.nbytes], 284: [planar]}
    if extra is not None:
        values[338] = [extra]
    strip = pixels.astype(order + "u2").tobytes()
    start = 8 + len(strip)
    rest_at = start + 2 + 12 * len(values) + 4
    table, rest = struct.pack(order + "H", len(values)), b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        table += struct.pack(order + "HHL", tag, 3, len(numbers))
        table += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "L", rest_at + len(rest))
        rest += packed if len(packed) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, start)
    return head + strip + table + bytes(4) + rest


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_every_bit_of_a_png_comes_in_whatever_its_filters(channels: int, interlaced: bool) -> None:
    pixels = noise(23, 17, channels)
    picture = read(png(pixels, interlaced=interlaced))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notes == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_every_bit_of_a_tiff_comes_in_by_either_byte_order(channels: int, order: str) -> None:
    pixels = noise(23, 17, channels)
    picture = read(tiff(pixels, order, extra=2 if channels == 4 else None))
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, pixels)


def test_colours_that_a_tiff_holds_multiplied_by_alpha_are_divided_by_it() -> None:
    pixels = np.array([[[100, 200, 300, 32_768], [5, 0, 7, 0], [1, 2, 65_535, 65_535], [900, 1, 1, 300]]], np.uint16)
    expected = [[200, 400, 600, 32_768], [0, 0, 0, 0], [1, 2, 65_535, 65_535], [65_535, 218, 218, 300]]
    assert read(tiff(pixels, extra=1)).pixels.tolist() == [expected]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", None])
@pytest.mark.parametrize("channels", [3, 4])
def test_what_is_written_as_tiff_is_read_back_as_it_was(channels: int, compression: str | None) -> None:
    pixels = noise(700, 300, channels)  # more than a strip
    picture = read(encode(pixels, "TIFF", Extras(compression=compression, dpi=(300, 150)), quality=None), 300_000)
    assert np.array_equal(picture.pixels, pixels)
    assert picture.extras.dpi == (300, 150)
    assert picture.extras.compression == ("raw" if compression == "raw" else "tiff_adobe_deflate")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_what_is_written_as_png_is_read_back_as_it_was(channels: int) -> None:
    pixels = noise(40, 30, channels)
    assert np.array_equal(read(encode(pixels, "PNG", Extras(), quality=None)).pixels, pixels)


def test_gray_and_alpha_become_colours_and_alpha_in_tiff() -> None:
    pixels = noise(9, 13, 2)
    gray = bytes(16) + b"GRAY" + bytes(50)
    picture = read(encode(pixels, "TIFF", Extras(icc_profile=gray), quality=None))
    assert np.array_equal(picture.pixels, pixels[..., [0, 0, 0, 1]])
    assert picture.extras.icc_profile is None


@pytest.mark.parametrize(
    ("pixels", "transparent"),
    [
        (np.array([[256, 257]], np.uint16), (257,)),
        (np.array([[[1, 2, 256], [1, 2, 257]]], np.uint16), (1, 2, 257)),
    ],
)
def test_the_one_transparent_value_is_compared_with_all_its_bits(
    pixels: np.ndarray, transparent: tuple[int, ...]
) -> None:
    data = png(pixels, chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    assert read(data).pixels[0, :, -1].tolist() == [65_535, 0]


@pytest.mark.parametrize("channels", [2, 3])
def test_orientation_turns_all_16_bits_alike(channels: int) -> None:
    pixels = noise(4, 6, channels)
    exif = Image.Exif()
    exif[0x112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    assert np.array_equal(read(png(pixels, chunk(b"eXIf", block))).pixels, np.rot90(pixels, -1))


def test_a_profile_and_exif_are_carried_by_our_own_tiff() -> None:
    exif = Image.Exif()
    exif[0x13B] = "an artist"
    extras = Extras(icc_profile=bytes(16) + b"RGB " + bytes(99), exif=exif.tobytes().removeprefix(b"Exif\0\0"))
    data = encode(noise(8, 8, 3), "TIFF", extras, quality=None)
    assert read(data).extras.icc_profile == extras.icc_profile
    assert Image.open(io.BytesIO(data)).getexif()[0x13B] == "an artist"


def test_the_header_counts_two_bytes_a_channel_before_anything_is_decoded() -> None:
    seen: list[Header] = []
    for pixels, before in (
        *((noise(5, 7, channels), ()) for channels in (2, 3, 4)),
        (noise(5, 7, 3), (chunk(b"tRNS", bytes(6)),)),
        (noise(5, 7), (chunk(b"tRNS", bytes(2)),)),
    ):
        decode(png(pixels, *before), max_pixels=35, on_header=seen.append)
    assert {(header.width, header.height) for header in seen} == {(7, 5)}
    assert [header.pixel_bytes for header in seen] == [4, 6, 8, 8, 4]
    assert [header.alpha for header in seen] == [True, False, True, True, True]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_limits_and_damage_are_as_for_8_bits(channels: int) -> None:
    data = png(noise(30, 20, channels))
    with pytest.raises(ImageTooLarge):
        read(data, 599)
    with pytest.raises(ImageTruncated):
        read(data[: len(data) // 2])
    broken = bytearray(data)
    broken[20] ^= 1  # the height, without its checksum
    with pytest.raises(ImageUnreadable):
        read(bytes(broken))


@pytest.mark.parametrize(
    ("data", "said"),
    [(tiff(noise(4, 4, 3), planar=2), "lie apart"), (tiff(noise(4, 4, 2), extra=2), "2 x 16 bits per pixel")],
    ids=["planes", "gray and alpha"],
)
def test_a_tiff_that_cannot_be_kept_is_refused_with_a_remedy(data: bytes, said: str) -> None:
    with pytest.raises(ImageUnsupported, match=said) as caught:
        read(data)
    assert "convert the picture" in str(caught.value)


@pytest.mark.parametrize("channels", [3, 4])
def test_formats_of_8_bits_refuse_16_before_the_work(channels: int) -> None:
    for image_format in ("JPEG", "WEBP", "BMP"):
        with pytest.raises(ImageUnsupported, match="holds 8 bits"):
            check_output(noise(8, 8, channels), (16, 16), image_format, max_pixels=1000)


def test_upscaling_uses_all_16_bits() -> None:
    """A slope that 8 bits would make into stairs of 257 stays a slope."""
    row = np.linspace(20_000, 21_000, 64).astype(np.uint16)
    pixels = np.repeat(np.tile(row, (32, 1))[..., None], 3, axis=2)
    out = Upscaler(device="cpu").upscale(pixels, 2)
    assert out.dtype == np.uint16
    inner = out[16:-16, 24:-24].astype(int)
    assert len(np.unique(inner)) > 60
    assert np.abs(np.diff(inner, axis=1)).max() < 100


def test_the_pipeline_takes_16_bit_colour_to_16_bit_colour(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png(noise(24, 20, 3)))
    (tmp_path / "in/b.tif").write_bytes(tiff(noise(24, 20, 4), extra=2))
    line = pipeline(tmp_path / "in")
    rows = run_line(line, ["a.png", "b.tif"])
    assert [(row.outcome, row.width, row.notes) for row in rows] == [("done", 40, ()), ("done", 40, ())]
    for row, channels in zip(rows, (3, 4), strict=True):
        picture = read(line.target.read(row.output))
        assert picture.pixels.shape == (48, 40, channels)
        assert len(np.unique(picture.pixels & 255)) == 256
