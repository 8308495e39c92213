import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from worker import png
from worker.png import encode_png


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.verify()  # the chunks' checksums
    return Image.open(io.BytesIO(data))


def by_hand(data, shape, dtype):
    """What the PNG holds, for kinds that Pillow cuts to 8 bits."""
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape[0], -1)
    assert (rows[:, 0] == 2).all()
    unfiltered = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return unfiltered.view(np.dtype(dtype).newbyteorder(">")).reshape(shape)


@pytest.fixture(params=["one band", "a row a band"])
def bands(request, monkeypatch):
    if request.param == "a row a band":
        monkeypatch.setattr(png, "BAND_BYTES", 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (9, 5), (9, 5, 2), (9, 5, 3), (9, 5, 4), (300, 201, 3)])
@pytest.mark.usefixtures("bands")
def test_pixels_come_back(shape):
    pixels = noise(*shape)
    assert (np.asarray(opened(encode_png(pixels))) == pixels).all()


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 2), (7, 5, 3), (7, 5, 4)])
@pytest.mark.usefixtures("bands")
def test_sixteen_bits_come_back(shape):
    pixels = noise(*shape, dtype=np.uint16)
    assert (by_hand(encode_png(pixels), shape, np.uint16) == pixels).all()


@pytest.mark.parametrize("order", [">u2", "<u2"])
def test_sixteen_bit_gray_is_what_pillow_reads_whatever_the_order_of_bytes_in_memory(order):
    pixels = noise(40, 30, dtype=np.uint16).astype(order)
    assert (np.asarray(opened(encode_png(pixels))) == pixels).all()


def test_pixels_need_not_lie_in_one_piece():
    pixels = noise(20, 40, 4)[::2, ::-1, :3]
    assert (np.asarray(opened(encode_png(pixels))) == pixels).all()


def test_profile_resolution_and_exif_are_kept():
    exif = Image.Exif()
    exif[305] = "a camera"
    data = encode_png(noise(4, 4, 3), icc_profile=b"profile" * 99, exif=exif.tobytes()[6:], dpi=(300, 72))
    image = opened(data)
    assert image.info["icc_profile"] == b"profile" * 99
    assert image.info["dpi"] == pytest.approx((300, 72), abs=0.02)
    assert image.getexif()[305] == "a camera"


def test_a_smooth_picture_becomes_small():
    row = np.linspace(0, 255, 1000).astype(np.uint8)
    assert len(encode_png(np.tile(row, (1000, 1)))) < 20_000
