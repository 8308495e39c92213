"""Is HEIC read with all that it carries and turned once, and is what it claims held against limits first?"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import Service
from PIL import Image

from vdsr.errors import ImageError, ImageTooLarge, ImageTruncated, ImageUnreadable, ImageUnsupported
from worker.formats import FORMATS, IMAGE_SUFFIXES, output_format
from worker.images import Header, Picture, decode, encode, fitted
from worker.isobmff import check_frames
from worker.plan import BYTES_PER_PIXEL

SEEDS = Path(__file__).parents[1] / "faults/seeds"
TURN = b"irot\x03"
"""In turned.heic: by 90 degrees clockwise, as its EXIF says too."""


def seed(name: str) -> bytes:
    return (SEEDS / name).read_bytes()


def read(data: bytes, max_pixels: int = 100_000) -> Picture:
    return decode(data, max_pixels=max_pixels)


def ramp() -> np.ndarray:
    """What the seeds show: (18, 24), growing to the right and downwards."""
    rows, columns = np.mgrid[:18, :24]
    return rows + columns


@pytest.mark.parametrize(("name", "bits"), [("ten.heic", 10), ("twelve.heic", 12)])
def test_10_and_12_bits_are_kept_exactly_and_white_is_white(name: str, bits: int) -> None:
    sixteen = np.stack([ramp() * 1500, 65_535 - ramp() * 1500, ramp() * 700], axis=-1)
    coded = sixteen >> 16 - bits
    picture = read(seed(name))
    assert picture.pixels.dtype == np.uint16
    assert (np.round(picture.pixels.astype(float) * (2**bits - 1) / 65_535) == coded).all()
    assert picture.pixels.max() == 65_535


def test_alpha_is_kept_as_it_was() -> None:
    plane = (ramp() * 6).astype(np.uint8)
    expected = np.dstack([plane, 255 - plane, plane // 2, plane])
    assert (read(seed("alpha.heic")).pixels == expected).all()


def test_gray_stays_gray() -> None:
    pixels = read(seed("gray.heic")).pixels
    assert pixels.shape == (18, 24)
    assert np.abs(pixels.astype(int) - ramp() * 6).mean() < 3


def test_profile_exif_and_xmp_are_carried() -> None:
    extras = read(seed("turned.heic")).extras
    exif = Image.Exif()
    exif.load(extras.exif or b"")
    assert exif[0x13B] == "Zoe"
    assert extras.xmp == b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    assert extras.icc_profile is not None
    assert extras.icc_profile[36:40] == b"acsp"


@pytest.mark.parametrize(
    ("box", "turned"),
    [
        (b"irot\x00", lambda pixels: pixels),  # EXIF still says 90 degrees, and is no instruction
        (b"irot\x01", lambda pixels: np.rot90(pixels, 1)),
        (b"irot\x02", lambda pixels: np.rot90(pixels, 2)),
        (b"irot\x03", lambda pixels: np.rot90(pixels, 3)),
        (b"imir\x00", lambda pixels: pixels[::-1]),
        (b"imir\x01", lambda pixels: pixels[:, ::-1]),
    ],
)
def test_a_picture_is_turned_once_as_its_container_says_and_its_exif_is_upright_then(box, turned) -> None:
    data = seed("turned.heic")
    assert data.count(TURN) == 1
    plain = read(data.replace(TURN, b"irot\x00")).pixels
    picture = read(data.replace(TURN, box))
    assert plain.shape == (18, 24, 3)
    assert (picture.pixels == turned(plain)).all()
    exif = Image.Exif()
    exif.load(picture.extras.exif or b"")
    assert exif.get(0x112, 1) == 1


def test_of_several_pictures_the_primary_one_is_taken_and_the_others_are_told_of() -> None:
    picture = read(seed("two.heic"))
    assert picture.notes == ("the primary one of 2 frames",)
    assert picture.pixels[-1, 0, 0] < 40 < picture.pixels[0, 0, 0]  # upside down: the second


def test_sizes_are_checked_before_anything_is_decoded() -> None:
    headers: list[Header] = []
    data = bytearray(seed("ten.heic"))
    decode(bytes(data), max_pixels=4096, on_header=headers.append)
    assert headers == [Header("HEIC", 24, 18, 6, alpha=False)]
    with pytest.raises(ImageTooLarge):  # HEVC codes 64 x 64 at least, and cuts out 24 x 18
        read(bytes(data), 4095)
    struct.pack_into(">LL", data, data.index(b"ispe") + 8, 60_000, 60_000)
    with pytest.raises(ImageTooLarge, match="60,000 x 60,000"):
        read(bytes(data), 10**9)


def sequence(width: int, height: int, *, layers: int = 0) -> bytes:
    """A sequence parameter set of HEVC as far as its size, with the bytes escaped that would end it."""

    def golomb(value: int) -> str:
        return f"{value + 1:b}".rjust(2 * (value + 1).bit_length() - 1, "0")

    bits = "0000" + f"{layers:03b}" + "1" + "0" * 96
    bits += "11" * layers + "00" * (8 - layers if layers else 0) + "0" * 96 * layers
    bits += golomb(0) + golomb(1) + golomb(width) + golomb(height) + "1"
    raw = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return b"\x42\x01" + raw.replace(b"\0\0", b"\0\0\3")


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">L", 8 + len(body)) + kind + body


def heic(declared: tuple[int, int], unit: bytes, *, in_item: bool) -> bytes:
    """A file that declares a size and codes another, in its configuration or in its data."""
    item = struct.pack(">L", len(unit)) + unit
    hvcc = box(b"hvcC", bytes(22), b"\1\x21", struct.pack(">HH", 1, len(unit)), unit)
    ispe = box(b"ispe", bytes(4), struct.pack(">LL", *declared))
    properties = box(b"iprp", box(b"ipco", ispe, *([] if in_item else [hvcc])))
    begin = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    places = [box(b"iloc", bytes(4), b"\x44\0", struct.pack(">HHHHLL", 1, 1, 0, 1, at, len(item))) for at in (0, 0)]
    start = len(begin) + 12 + len(properties) + len(places[0]) + 8
    place = box(b"iloc", bytes(4), b"\x44\0", struct.pack(">HHHHLL", 1, 1, 0, 1, start, len(item)))
    return begin + box(b"meta", bytes(4), properties, place) + box(b"mdat", item)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("in_item", [False, True])
def test_pixels_that_are_larger_than_declared_are_refused_and_not_decoded(in_item: bool, layers: int) -> None:
    unit = sequence(8000, 6000, layers=layers)
    check_frames(heic((7990, 5970), unit, in_item=in_item))  # whole blocks are coded
    with pytest.raises(ImageUnreadable, match="says 16 x 16 and holds 8,000 x 6,000"):
        read(heic((16, 16), unit, in_item=in_item))


def test_a_file_that_ends_early_is_told_as_that() -> None:
    with pytest.raises(ImageTruncated):
        read(seed("turned.heic")[:-100])


def test_colours_that_would_be_shown_wrong_are_refused() -> None:
    data = seed("ten.heic")
    at = data.index(b"colrnclx") + 8
    with pytest.raises(ImageUnsupported, match="convert the picture to sRGB"):
        read(data[:at] + struct.pack(">HH", 9, 16) + data[at + 4 :])


def test_it_becomes_png_and_other_formats_with_a_note_where_bits_are_lost() -> None:
    assert output_format("HEIC", "same") == "PNG"
    deep = read(seed("ten.heic"))
    assert fitted(deep, "PNG") is not None
    assert fitted(deep, "TIFF").pixels.dtype == np.uint16
    narrow = fitted(deep, "JPEG")
    assert narrow.notes == ("JPEG holds 8 bits per channel, and the source has more: rounded",)
    assert (narrow.pixels == np.round(deep.pixels / 257).astype(np.uint8)).all()
    lossless = read(encode(deep.pixels, "PNG", deep.extras, quality=None))
    assert fitted(lossless, "JPEG").pixels.dtype == np.uint16  # and check_output refuses that


def test_without_its_package_it_is_refused_with_the_command_that_installs_it() -> None:
    script = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from worker.images import decode\n"
        "try: decode(open(sys.argv[1], 'rb').read(), max_pixels=10_000)\n"
        "except Exception as exc: print(exc.code, exc)\n"
    )
    command = [sys.executable, "-c", script, str(SEEDS / "ten.heic")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("unsupported ")
    assert "pip install 'vdsr[heif]'" in told


def test_every_format_that_is_read_can_be_planned() -> None:
    assert set(IMAGE_SUFFIXES.values()) == set(FORMATS) == set(BYTES_PER_PIXEL)


def test_a_folder_of_heic_and_avif_becomes_png_and_avif(service: Service, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("ten.heic", "turned.heic", "ten.avif"):
        (tmp_path / "in" / name).write_bytes(seed(name))
    (tmp_path / "in/photo.HIF").write_bytes(seed("two.heic"))
    (tmp_path / "in/broken.heif").write_bytes(seed("two.heic")[:700])

    job = service.submit(tmp_path / "in", tmp_path / "out")
    service.wait(job)

    rows = service.rows(job)
    assert {key: (row.outcome, row.output) for key, row in rows.items()} == {
        "ten.heic": ("done", "ten.png"),
        "turned.heic": ("done", "turned.png"),
        "photo.HIF": ("done", "photo.png"),
        "ten.avif": ("done", "ten.avif"),
        "broken.heif": ("failed", "broken.png"),
    }
    assert rows["ten.avif"].notes == ("AVIF holds 8 bits per channel, and the source has more: rounded",)
    deep = read((tmp_path / "out/ten.png").read_bytes())
    assert (deep.pixels.dtype, deep.pixels.shape) == (np.uint16, (36, 48, 3))
    assert read((tmp_path / "out/turned.png").read_bytes()).pixels.shape == (48, 36, 3)


def outcome(data: bytes) -> str:
    try:
        return f"{read(data).pixels.dtype}"
    except ImageError as exc:
        return exc.code


def test_damage_anywhere_gives_a_picture_or_an_image_error() -> None:
    data, seen = bytearray(seed("turned.heic")), set()
    for place in range(0, len(data), 7):
        data[place] ^= 0xFF
        seen.add(outcome(bytes(data)))
        data[place] ^= 0xFF
    assert {"uint8", "unreadable"} <= seen <= {"uint8", "unreadable", "truncated", "unsupported", "too_large"}
