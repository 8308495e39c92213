"""What becomes of each property of a picture in each format? Found by doing it, and written into docs/formats.md.

python tests/format_matrix.py          writes the table
python tests/format_matrix.py --check  exit code 1 if it is not what is written

A cell is one journey: a file that has the property is decoded, prepared as the pipeline does, written as the target
format and decoded again. "kept" is an equality of what came out; "note" means that the outcome says what was changed;
a code is a refusal. A property that is neither there afterwards nor told of is "LOST", and fails the test.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)] if __name__ == "__main__" else []

from vdsr.errors import ImageError  # noqa: E402 - after the path
from worker.formats import REQUESTS  # noqa: E402
from worker.images import Extras, Picture, check_output, decode, encode, fitted, left_out  # noqa: E402

DOCUMENT = ROOT / "docs" / "formats.md"
BEGIN, END = "<!-- begin: made by tests/format_matrix.py -->\n", "<!-- end -->\n"
TARGETS = [request.upper() for request in REQUESTS if request != "same"]
LOSSLESS = ("PNG", "TIFF", "BMP")
SEEDS = ROOT / "tests" / "faults" / "seeds"


@dataclass(frozen=True)
class Property:
    """A row: a file that has it, and whether it is there afterwards."""

    name: str
    source: bytes
    kept: Callable[[Picture, Picture], bool]
    """Of the picture that was read first, and the one that was read of the output."""
    converted: str = ""
    """What a documented conversion without a note is called, where the format has no such kind of pixels."""


def smooth(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Pixels that lossy codecs hardly change."""
    peak = np.iinfo(dtype).max
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    plane = (rows + columns) * (peak // (shape[0] + shape[1])) + 1
    if len(shape) == 2:
        return plane.astype(dtype)
    shades = [peak - plane if channel == shape[2] - 1 else plane // (1 + channel) for channel in range(shape[2])]
    return np.stack(shades, axis=-1).astype(dtype)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    """By Pillow."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def same_pixels(first: Picture, second: Picture) -> bool:
    """The same kind of pixels, with the same values unless the compression is lossy."""
    a, b = first.pixels, second.pixels
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if second.format in LOSSLESS:
        return bool((a == b).all())
    return bool(np.abs(a.astype(int) - b).mean() <= np.iinfo(a.dtype).max / 60)


def exif_of(picture: Picture) -> dict[int, object]:
    """Its first directory."""
    exif = Image.Exif()
    exif.load(picture.extras.exif or b"")
    return dict(exif)


def properties() -> list[Property]:
    """The rows."""
    rgb = smooth(24, 24, 3)
    exif = Image.Exif()
    exif[0x13B], exif[0x112] = "Zoe", 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gray_profile = bytes(16) + b"GRAY" + bytes(104)
    frames = [Image.fromarray(rgb), Image.fromarray(rgb[::-1])]

    def png(pixels: np.ndarray, extras: Extras | None = None) -> bytes:
        return encode(pixels, "PNG", extras or Extras(), quality=None)

    def kept_profile(first: Picture, second: Picture) -> bool:
        return second.extras.icc_profile == first.extras.icc_profile is not None

    def kept_dpi(_first: Picture, second: Picture) -> bool:
        return second.extras.dpi is not None and abs(second.extras.dpi[0] - 300) < 0.1

    return [
        Property("8-bit gray", png(smooth(24, 24)), same_pixels, "RGB"),
        Property("8-bit gray, alpha", png(smooth(24, 24, 2)), same_pixels, "RGBA"),
        Property("8-bit RGB", png(rgb), same_pixels),
        Property("8-bit RGB, alpha", png(smooth(24, 24, 4)), same_pixels),
        Property("palette, as colours", saved(Image.fromarray(rgb).quantize(64), "PNG"), same_pixels),
        Property("16-bit gray", png(smooth(24, 24, dtype="uint16")), same_pixels),
        Property("16-bit gray, alpha", png(smooth(24, 24, 2, dtype="uint16")), same_pixels, "RGBA"),
        Property("16-bit RGB", png(smooth(24, 24, 3, dtype="uint16")), same_pixels),
        Property("16-bit RGB, alpha", png(smooth(24, 24, 4, dtype="uint16")), same_pixels),
        Property("10-bit HEIC", (SEEDS / "ten.heic").read_bytes(), same_pixels),
        Property("HEIC, alpha", (SEEDS / "alpha.heic").read_bytes(), same_pixels),
        Property("10-bit AVIF, alpha", (SEEDS / "ten_alpha.avif").read_bytes(), same_pixels),
        Property("CMYK with a profile", (SEEDS / "inks.tif").read_bytes(), lambda first, second: False),
        Property("CMYK without", (SEEDS / "cmyk.jpg").read_bytes(), lambda first, second: False),
        Property("colour profile", png(rgb, Extras(icc_profile=profile)), kept_profile),
        Property("gray's profile", png(smooth(24, 24), Extras(icc_profile=gray_profile)), kept_profile),
        Property("EXIF", png(rgb, Extras(exif=block)), lambda _, second: exif_of(second).get(0x13B) == "Zoe"),
        Property(
            "orientation",
            saved(Image.fromarray(rgb), "JPEG", exif=exif, quality=95),
            lambda first, second: same_pixels(first, second) and exif_of(second).get(0x112, 1) == 1,
        ),
        Property("XMP", png(rgb, Extras(xmp=xmp)), lambda _, second: second.extras.xmp == xmp),
        Property("DPI", png(rgb, Extras(dpi=(300, 300))), kept_dpi),
        Property("animation", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), lambda *_: False),
    ]


def cell(row: Property, target: str) -> str:
    """What becomes of it: kept, note, a conversion, a code, or LOST."""
    try:
        source = decode(row.source, max_pixels=10_000)
        first = fitted(source, target)
        pixels = first.pixels
        check_output(pixels, pixels.shape[:2], target, max_pixels=10_000)
        data = encode(pixels, target, first.extras, quality=95)
    except ImageError as exc:
        return f"`{exc.code}`"
    second = decode(data, max_pixels=10_000)
    if row.kept(source, second):
        return "kept"
    if first.notes + left_out(pixels, first.extras, target):
        return "note"
    channels = second.pixels.shape[2] if second.pixels.ndim == 3 else 1
    if row.converted and {"RGB": 3, "RGBA": 4}[row.converted] == channels and second.pixels.dtype == pixels.dtype:
        return f"{row.converted}"
    return "LOST"


def matrix() -> dict[str, dict[str, str]]:
    """Property -> target -> cell."""
    return {row.name: {target: cell(row, target) for target in TARGETS} for row in properties()}


def table() -> str:
    """As Markdown."""
    lines = [f"| property | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.values())} |" for name, cells in matrix().items()]
    return "\n".join(lines) + "\n"


def documented() -> str:
    """The table as it stands in the document."""
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """The command; its exit code."""
    fresh = table()
    if "--check" in sys.argv:
        return int(documented() != fresh)
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + fresh + END + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
