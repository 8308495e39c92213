"""What is a picture in memory? Its pixels, and all else that its file carried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Extras:
    """What a file carries beside its pixels."""

    icc_profile: bytes | None = None
    exif: bytes | None = None
    """A TIFF structure ("II*..." or "MM..."), upright and without a thumbnail."""
    xmp: bytes | None = None
    """A packet in UTF-8, upright."""
    dpi: tuple[float, float] | None = None
    """Horizontal, vertical."""
    lossless: bool = False
    """It was a lossless WebP, and stays one if it stays WebP, whatever the quality asked for."""
    compression: str | None = None
    """For TIFF, by Pillow's name; None stands for deflate."""


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Picture:
    """A decoded file."""

    pixels: NDArray[Any]
    """(H, W) or (H, W, 2 | 3 | 4), uint8 or uint16: gray, gray and alpha, RGB, RGBA. Upright."""
    format: str
    """One of `worker.formats.FORMATS`: what the bytes are, whatever the name says."""
    extras: Extras
    notes: tuple[str, ...]
    """What the user should know, such as "first of 12 frames"."""


@dataclass(frozen=True)
class Header:
    """What is known before any pixel is decoded."""

    format: str
    width: int
    height: int
    pixel_bytes: int
    """The most that a pixel of `Picture.pixels` can take."""
    alpha: bool = False
    """Whether there may be some."""
