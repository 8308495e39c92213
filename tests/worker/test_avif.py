"""Is AVIF read and written with all that it carries, and refused where its colours would be shown wrong?"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line
from PIL import Image

from vdsr.errors import FormatLimit, ImageTooLarge, ImageUnreadable, ImageUnsupported
from worker.images import Extras, Picture, check_output, decode, encode

SEEDS = Path(__file__).parents[1] / "faults/seeds"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def read(data: bytes, max_pixels: int = 100_000) -> Picture:
    return decode(data, max_pixels=max_pixels)


def smooth(*shape: int) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    plane = (rows * 3 + columns * 2) % 200
    return np.broadcast_to(plane[..., None] if len(shape) > 2 else plane, shape).astype(np.uint8).copy()


def nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    """The same file with other colours declared."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


@pytest.mark.parametrize("shape", [(33, 47), (33, 47, 3), (33, 47, 4)])
def test_what_is_written_is_read_back_nearly_as_it_was(shape: tuple[int, ...]) -> None:
    pixels = smooth(*shape)
    again = read(encode(pixels, "AVIF", Extras(), quality=95))
    assert (again.format, again.pixels.shape, again.notes) == ("AVIF", shape, ())
    assert np.abs(again.pixels.astype(int) - pixels).mean() < 2


def test_gray_and_alpha_become_colours_and_alpha() -> None:
    pixels = smooth(20, 30, 2)
    assert read(encode(pixels, "AVIF", Extras(), quality=95)).pixels.shape == (20, 30, 4)


def test_quality_is_obeyed_and_80_where_none_is_given() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [len(encode(pixels, "AVIF", Extras(), quality=quality)) for quality in (40, 80, None)]
    assert sizes[0] < sizes[1] == sizes[2]


def test_profile_exif_and_xmp_are_carried() -> None:
    exif = Image.Exif()
    exif[0x13B], exif[0x100] = "Zoe", 3
    extras = Extras(icc_profile=srgb_profile(), exif=exif.tobytes().removeprefix(b"Exif\0\0"), xmp=XMP)
    picture = read(encode(smooth(20, 30, 3), "AVIF", extras, quality=None))
    kept = Image.Exif()
    kept.load(picture.extras.exif or b"")
    assert (kept[0x13B], kept[0x100]) == ("Zoe", 30)
    assert picture.extras.xmp == XMP
    assert picture.extras.icc_profile == extras.icc_profile


def srgb_profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_that_its_container_turns_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "AVIF", quality=100, exif=exif)
    expected = np.rot90(pixels, {3: 2, 6: -1, 8: 1}[orientation])
    picture = read(file.getvalue())
    assert np.abs(picture.pixels.astype(int) - expected).max() < 30
    kept = Image.Exif()
    kept.load(picture.extras.exif or b"")
    assert kept.get(0x112, 1) == 1


def test_more_than_8_bits_are_kept_to_the_last() -> None:
    rows, columns = np.mgrid[:18, :24]
    ramp = rows + columns
    coded = np.stack([ramp * 1500, 65_535 - ramp * 1500, ramp * 700, ramp * 1500], axis=-1) >> 6
    picture = read((SEEDS / "ten_alpha.avif").read_bytes())
    assert (picture.pixels.dtype, picture.notes) == (np.uint16, ())
    steps = np.round(picture.pixels.astype(float) * 1023 / 65_535)
    assert np.abs(steps - coded).max() <= 2  # which is half of what 8 bits tell apart
    assert (steps[..., 3] == coded[..., 3]).all()


def test_without_its_package_more_than_8_bits_are_cut_with_a_note() -> None:
    script = (
        "import importlib.util as util, sys; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'imagecodecs' else found(name, *rest)\n"
        "from worker.images import decode\n"
        "picture = decode(open(sys.argv[1], 'rb').read(), max_pixels=10_000)\n"
        "print(picture.pixels.dtype, picture.notes)\n"
    )
    command = [sys.executable, "-c", script, str(SEEDS / "ten.avif")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("uint8 (")
    assert "10 bits per channel became 8; a worker with 'vdsr[heif]' installed keeps them" in told


@pytest.mark.parametrize(("primaries", "transfer"), [(9, 16), (9, 18), (12, 13), (1, 8)])
def test_hdr_and_wide_colours_without_a_profile_are_refused(primaries: int, transfer: int) -> None:
    data = encode(smooth(20, 30, 3), "AVIF", Extras(), quality=None)
    assert read(nclx(data, 1, 13)).pixels.shape == (20, 30, 3)
    with pytest.raises(ImageUnsupported, match="convert the picture to sRGB"):
        read(nclx(data, primaries, transfer))


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    data = bytearray(encode(smooth(20, 30, 3), "AVIF", Extras(), quality=None))
    with pytest.raises(ImageTooLarge):
        read(bytes(data), 599)
    with pytest.raises(FormatLimit, match="AVIF allows 16,384 px"):
        check_output(smooth(2, 2), (2, 16_385), "AVIF", max_pixels=10**9)
    struct.pack_into(">LL", data, data.index(b"ispe") + 8, 60_000, 60_000)
    with pytest.raises(ImageTooLarge):
        read(bytes(data), 10**9)


@pytest.mark.parametrize("count", [1, 2])
def test_pixels_that_are_larger_than_declared_are_refused_and_not_decoded(count: int) -> None:
    """Or a file of some bytes would take hundreds of megabytes."""
    file = io.BytesIO()
    large = [Image.new("RGB", (400, 300), colour) for colour in ("red", "blue")][:count]
    large[0].save(file, "AVIF", save_all=count > 1, append_images=large[1:])
    data = bytearray(file.getvalue())
    assert read(bytes(data), 120_000).pixels.shape == (300, 400, 3)
    struct.pack_into(">LL", data, data.index(b"ispe") + 8, 16, 16)
    with pytest.raises(ImageUnreadable, match="says 16 x 16 and holds 400 x 300"):
        read(bytes(data))


def test_16_bits_are_refused() -> None:
    with pytest.raises(ImageUnsupported, match="AVIF holds 8 bits"):
        check_output(np.zeros((2, 2, 3), np.uint16), (4, 4), "AVIF", max_pixels=100)


def test_a_sequence_gives_its_first_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:])
    picture = read(file.getvalue())
    assert picture.pixels[8, 8, 0] > 240
    assert picture.notes == ("first of 2 frames",)
    with pytest.raises(ImageUnreadable, match="like a video"):
        read(b"\0\0\0\x1cftypisom\0\0\0\0mp42isom")


def test_a_job_makes_avif_of_avif_and_of_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.avif").write_bytes(encode(smooth(20, 30, 3), "AVIF", Extras(), quality=None))
    line = pipeline(tmp_path / "in", score=False)
    (row,) = run_line(line, ["a.avif"])
    assert (row.outcome, row.width, read(line.target.read(row.output)).format) == ("done", 60, "AVIF")
