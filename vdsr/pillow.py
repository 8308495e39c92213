"""How do Pillow's images become arrays and arrays become Pillow's images? Without losing depth or transparency.

| Pillow mode              | array                                |
|--------------------------|--------------------------------------|
| 1, L                     | (H, W) uint8                         |
| I;16, I;16B, I;16L       | (H, W) uint16                        |
| LA, La                   | (H, W, 2) uint8                      |
| RGB                      | (H, W, 3) uint8                      |
| RGBA                     | (H, W, 4) uint8                      |
| P, PA                    | as RGB, or RGBA where it has transparency; gray palettes as L |
| 1, L, RGB with a transparent colour | as LA, LA, RGBA           |
| I;16 with a transparent colour | refused: there is no 16-bit gray with alpha |
| CMYK, LAB, HSV, I, F ... | refused: converting would change colours or cut depth |
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdsr.errors import ImageEmpty, ImageTruncated, ImageUnreadable, ImageUnsupported

if TYPE_CHECKING:
    from PIL import Image

DIRECT = {"L", "LA", "RGB", "RGBA"}
SIXTEEN = {"I;16", "I;16B", "I;16L", "I;16N"}
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error)
"""What Pillow's decoders raise for bytes that make no sense to them."""


def read_image(path: str | Path) -> Image.Image:
    """The first picture of a file, decoded and upright.

    Raises:
        OSError: the file is not there, is a folder, or may not be read.
        ImageError: by one of its subclasses; what is there is no picture, or damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with Path(path).open("rb") as file:
        if not file.read(1):
            raise ImageEmpty
        file.seek(0)
        try:
            image = Image.open(file)
            image.load()
        except Image.DecompressionBombError as exc:
            raise ImageUnsupported(f"{path}: {exc}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file") from exc
        except DAMAGE as exc:
            if "truncated" in str(exc).lower():
                raise ImageTruncated(f"{path} ends before its pixels do; copy it again from its source") from exc
            what = "no format that Pillow knows" if isinstance(exc, UnidentifiedImageError) else str(exc)
            raise ImageUnreadable(f"{path} is no picture, or damaged ({what}); copy it again from its source") from exc
        return ImageOps.exif_transpose(image)


def to_array(image: Image.Image) -> NDArray[Any]:
    """(H, W) or (H, W, C) uint8 or uint16 pixels of an image.

    Raises:
        ImageUnsupported: a mode that has no faithful array.
    """
    if image.mode in SIXTEEN:
        if image.has_transparency_data:
            raise ImageUnsupported("16-bit gray with transparency is not supported; convert the picture to 8 bit")
        return np.asarray(image, dtype=np.uint16)
    mode = _plain_mode(image)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def from_array(pixels: NDArray[Any]) -> Image.Image:
    """The Pillow image of an array that `to_array` could have made."""
    from PIL import Image

    if pixels.dtype == np.uint16 and pixels.ndim == 2:
        height, width = pixels.shape
        return Image.frombytes("I;16", (width, height), pixels.astype("<u2").tobytes())
    if pixels.dtype != np.uint8:
        raise ImageUnsupported("Pillow holds 16 bits per sample only for gray without alpha; keep the array instead")
    return Image.fromarray(pixels)


def _plain_mode(image: Image.Image) -> str:
    """The mode of DIRECT that holds all of this image."""
    transparent = image.has_transparency_data
    if image.mode in DIRECT:
        if transparent and image.mode in ("L", "RGB"):  # one colour is declared transparent
            return "LA" if image.mode == "L" else "RGBA"
        return image.mode
    if image.mode in ("1", "La"):
        return "LA" if transparent else "L"
    if image.mode in ("P", "PA"):
        if transparent:
            return "RGBA"
        # the colour profile of a palette is one for RGB, and would not fit gray
        return "L" if _gray_palette(image) and not image.info.get("icc_profile") else "RGB"
    raise ImageUnsupported(
        f"colour mode {image.mode} is not supported; convert the picture to RGB, RGBA, grayscale or 16-bit grayscale"
    )


def _gray_palette(image: Image.Image) -> bool:
    palette = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())
