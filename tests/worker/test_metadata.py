"""XMP, CMYK and --metadata: what a file tells about itself is kept, left out on request, or missed with a note."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line
from PIL import Image

from vdsr.errors import ImageUnsupported
from worker.errors import UsageError
from worker.images import Extras, Picture, decode, encode, left_out
from worker.jobs import Options
from worker.metadata import reduced

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" tiff:Orientation="6" tiff:ImageWidth='3' xmpRights:Marked="True"
 photoshop:City="Zürich">
<tiff:ImageLength>2</tiff:ImageLength><exif:PixelXDimension>3</exif:PixelXDimension>
<dc:creator><rdf:Seq><rdf:li>Zoë Müller</rdf:li></rdf:Seq></dc:creator>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">© Zoë</rdf:li></rdf:Alt></dc:rights>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()
CARRIERS = ["JPEG", "PNG", "WEBP", "TIFF"]


def read(data: bytes) -> Picture:
    return decode(data, max_pixels=100_000)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x10F], exif[0x13B], exif[0x8298] = "Canon", "Zoe", "(c) Zoe"
    return exif.tobytes().removeprefix(b"Exif\0\0")


def source(image_format: str) -> bytes:
    return encode(noise(8, 8, 3), image_format, Extras(xmp=PACKET, exif=exif_block()), quality=None)


# ---- XMP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", CARRIERS)
@pytest.mark.parametrize("origin", CARRIERS)
def test_xmp_is_carried_from_format_to_format_upright_and_with_the_new_size(origin: str, target: str) -> None:
    extras = read(source(origin)).extras
    kept = read(encode(noise(20, 30, 3), target, extras, quality=None)).extras.xmp
    assert kept is not None
    assert kept == (
        PACKET.replace(b'Orientation="6"', b'Orientation="1"')
        .replace(b"ImageWidth='3'", b"ImageWidth='30'")
        .replace(b"ImageLength>2<", b"ImageLength>20<")
        .replace(b"PixelXDimension>3<", b"PixelXDimension>30<")
    )


@pytest.mark.parametrize("image_format", CARRIERS)
def test_another_reader_finds_the_xmp_too(image_format: str) -> None:
    found = Image.open(io.BytesIO(source(image_format))).info["xmp"]
    assert "Zürich" in (found if isinstance(found, str) else found.decode())


def test_xmp_comes_with_16_bit_colours() -> None:
    for image_format in ("PNG", "TIFF"):
        data = encode(noise(8, 8, 4, dtype="uint16"), image_format, Extras(xmp=PACKET), quality=None)
        assert b"Zo\xc3\xab" in (read(data).extras.xmp or b"")


def test_xmp_that_is_no_text_is_left_out_with_a_note() -> None:
    picture = read(saved(Image.new("L", (8, 8)), "JPEG", xmp=b"\xff\xfe<\0x\0"))
    assert picture.extras.xmp is None
    assert picture.notes == ("XMP was damaged and is left out",)


# ---- --metadata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", CARRIERS)
def test_strip_leaves_nothing_but_how_the_picture_looks(image_format: str) -> None:
    profile = bytes(16) + b"RGB " + bytes(99)
    extras = Extras(xmp=PACKET, exif=exif_block(), icc_profile=profile, dpi=(300, 300))
    data = encode(noise(8, 8, 3), image_format, reduced(extras, "strip"), quality=None)
    assert not [word for word in (b"Canon", "Zoë".encode(), b"Zoe", b"xmpmeta") if word in data]
    assert read(data).extras.icc_profile == profile


@pytest.mark.parametrize("image_format", CARRIERS)
def test_copyright_keeps_who_made_it_and_whose_it_is_and_nothing_else(image_format: str) -> None:
    data = encode(noise(8, 8, 3), image_format, reduced(read(source("PNG")).extras, "copyright"), quality=None)
    picture = read(data)
    exif = Image.Exif()
    exif.load(picture.extras.exif or b"")
    assert (exif[0x13B], exif[0x8298]) == ("Zoe", "(c) Zoe")
    assert 0x10F not in exif
    xmp = (picture.extras.xmp or b"").decode()
    assert "Zo&#235; M&#252;ller" in xmp
    assert 'Marked="True"' in xmp
    assert "Zo&#235;</rdf:li></rdf:Alt></dc:rights>" in xmp
    assert not [word for word in ("rich", "Orientation", "ImageWidth", "Canon") if word in xmp]


@pytest.mark.parametrize("xmp", [b"<not xml", b"<a/>", b'<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>', PACKET[:300]])
def test_copyright_of_xmp_that_names_nobody_or_cannot_be_read_is_none(xmp: bytes) -> None:
    assert reduced(Extras(xmp=xmp, exif=b"nonsense"), "copyright") == Extras()


def test_another_word_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="metadata is 'all'; it must be one of keep, strip, copyright"):
        Options(metadata="all")


@pytest.mark.parametrize(("metadata", "camera", "owner"), [("keep", 1, 1), ("strip", 0, 0), ("copyright", 0, 1)])
def test_a_job_writes_what_its_option_says(tmp_path: Path, metadata: str, camera: bool, owner: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(source("JPEG"))
    line = pipeline(tmp_path / "in", metadata=metadata, score=False)
    (row,) = run_line(line, ["a.jpg"])
    data = line.target.read(row.output)
    assert (b"Canon" in data, b"(c) Zoe" in data) == (bool(camera), bool(owner))


def test_the_option_shapes_the_output() -> None:
    first, second = (pipeline(Path("/in"), metadata=metadata).job for metadata in ("keep", "strip"))
    assert first.made_of("a", "1", "m") != second.made_of("a", "1", "m")


# ---- what a format does not hold ------------------------------------------------------------------------------------

PROFILE, GRAY = bytes(16) + b"RGB " + bytes(99), bytes(16) + b"GRAY" + bytes(99)


@pytest.mark.parametrize(
    ("image_format", "shape", "extras", "names"),
    [
        ("BMP", (1, 1), Extras(icc_profile=PROFILE, exif=b"x", xmp=b"x", dpi=(9, 9)), "its colour profile, EXIF, XMP"),
        ("JPEG", (1, 1), Extras(exif=bytes(70_000), xmp=bytes(70_000)), "EXIF, XMP"),
        ("JPEG", (1, 1), Extras(icc_profile=bytes(17_000_000)), "its colour profile"),
        ("WEBP", (1, 1), Extras(icc_profile=GRAY), "its colour profile"),
        ("WEBP", (1, 1, 3), Extras(dpi=(300, 300)), "its resolution"),
        ("WEBP", (1, 1, 3), Extras(icc_profile=PROFILE, xmp=b"x", exif=b"x", dpi=(300, 300)), None),
        ("JPEG", (1, 1), Extras(icc_profile=GRAY, exif=b"x", xmp=b"x", dpi=(9, 9)), None),
        ("PNG", (1, 1), Extras(icc_profile=GRAY, exif=bytes(70_000), xmp=bytes(70_000), dpi=(9, 9)), None),
        ("TIFF", (1, 1), Extras(icc_profile=GRAY, exif=bytes(70_000), xmp=bytes(70_000), dpi=(9, 9)), None),
    ],
)
def test_what_a_format_does_not_hold_is_named(
    image_format: str, shape: tuple[int, ...], extras: Extras, names: str | None
) -> None:
    expected = (f"{image_format} does not hold {names}: left out",) if names else ()
    assert left_out(np.zeros(shape, np.uint8), extras, image_format) == expected


def test_the_outcome_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(source("JPEG"))
    for metadata, notes in (("keep", ("BMP does not hold EXIF, XMP: left out",)), ("strip", ())):
        (row,) = run_line(pipeline(tmp_path / "in", format="bmp", metadata=metadata, score=False), ["a.jpg"])
        assert row.notes == notes


# ---- CMYK -----------------------------------------------------------------------------------------------------------


def cmyk_profile() -> bytes:
    """Inks that are idealised: a table of two steps each (ICC.1:2001, lut8Type), to L* and neutral a*, b*."""
    corners = np.array(np.meshgrid(*[[0, 1]] * 4, indexing="ij")).reshape(4, -1).T
    light = np.clip(255 * (1 - corners[:, :3].mean(1)) * (1 - corners[:, 3]), 0, 255)
    red = 128 + 60 * (corners[:, 1] - corners[:, 0]) * (1 - corners[:, 3])
    lab = np.stack([light, red, np.full(16, 128)], 1).round().astype(np.uint8)
    matrix = struct.pack(">9l", *(65_536 if n % 4 == 0 else 0 for n in range(9)))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab.tobytes() + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3l", 63_190, 65_536, 54_061)
    text = b"text\0\0\0\0none\0"
    described = b"desc\0\0\0\0" + struct.pack(">L", 5) + b"inks\0" + bytes(78)
    tags = {b"desc": described, b"cprt": text, b"wtpt": white, b"A2B0": table}
    at, index, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        index += name + struct.pack(">LL", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = at + len(body)
    head = struct.pack(">L4sL4s4s4s", size, b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(24) + struct.pack(">L3l", 0, 63_190, 65_536, 54_061)
    return head.ljust(128, b"\0") + struct.pack(">L", len(tags)) + index + body


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_srgb_by_its_profile_with_a_note(image_format: str) -> None:
    inks = np.zeros((300, 8, 4), np.uint8)  # more than a band
    inks[100:200, :, 1] = 255
    inks[200:, :, 3] = 255
    options = {"quality": 100} if image_format == "JPEG" else {}
    data = saved(Image.fromarray(inks, "CMYK"), image_format, icc_profile=cmyk_profile(), **options)
    picture = read(data)
    assert picture.pixels.shape == (300, 8, 3)
    paper, magenta, black = (picture.pixels[row, 4].astype(int) for row in (50, 150, 250))
    assert paper.min() > 245
    assert magenta[0] - magenta[1] > 60
    assert black.max() < 10
    assert picture.extras.icc_profile is None
    assert picture.notes == ("CMYK became sRGB by its colour profile",)


@pytest.mark.parametrize("profile", [None, PROFILE, bytes(16) + b"CMYK" + bytes(200), cmyk_profile()[:300]])
def test_cmyk_without_a_profile_that_fits_is_refused_before_its_pixels_are_decoded(profile: bytes | None) -> None:
    options = {"icc_profile": profile} if profile else {}
    seen: list[object] = []
    with pytest.raises(ImageUnsupported, match=r"its colours are CMYK.*convert the picture to RGB"):
        decode(saved(Image.new("CMYK", (8, 8)), "JPEG", **options), max_pixels=64, on_header=seen.append)
    assert seen == []
