"""What does the network learn from? Pairs of luminance patches: after bicubic down and up again, and as they were.

Every batch is a pure function of (seed, step): a run that is killed and resumed sees the same data as one that
was not, with no sampler state to keep.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vdsr.color import gray_to_y, rgb_to_ycbcr
from vdsr.resize import bicubic

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
FULL = 65535  # patches are kept as 16-bit fractions: a third of fp32's memory, 0.004 of an 8-bit step


def image_paths(folder: Path) -> list[Path]:
    """Every image below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def read_luma(path: Path) -> NDArray[np.float32]:
    """(H, W) float32 studio-range luminance / 255 of an 8-bit RGB or gray file."""
    with Image.open(path) as image:
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"), np.float32) / 255
    y = gray_to_y(pixels) if pixels.ndim == 2 else rgb_to_ycbcr(pixels.transpose(2, 0, 1))[0]
    return y.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Picture:
    """One training image: its luminance, and for each scale the same after bicubic down and up again."""

    hr: NDArray[np.uint16]
    bicubic: dict[int, NDArray[np.uint16]]
    sha256: str


def prepare(path: Path, scales: Sequence[int]) -> Picture:
    """Read an image and degrade it by every scale, cropped so that all of them divide its size."""
    y = read_luma(path)
    multiple = math.lcm(*scales)
    height, width = (n - n % multiple for n in y.shape)
    y = y[:height, :width]
    return Picture(
        hr=_fixed(y),
        bicubic={s: _fixed(bicubic(bicubic(y, scale=1 / s), scale=s)) for s in scales},
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


class Patches:
    """Draws batches of aligned patches from pictures held in memory."""

    def __init__(self, pictures: Sequence[Picture], *, patch: int, batch: int, seed: int) -> None:
        """Pictures smaller than a patch are left out.

        Raises:
            ValueError: no picture is as large as a patch.
        """
        self.pictures = [p for p in pictures if min(p.hr.shape) >= patch]
        if not self.pictures:
            raise ValueError(f"none of {len(pictures)} pictures has {patch} x {patch} pixels")
        self.patch, self.batch, self.seed = patch, batch, seed
        positions = np.array([(p.hr.shape[0] - patch + 1) * (p.hr.shape[1] - patch + 1) for p in self.pictures])
        self.weights = positions / positions.sum()  # every position of every picture is equally likely
        self.scales = sorted(self.pictures[0].bicubic)

    def at(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The batch of a step: bicubic and true patches, each (batch, 1, patch, patch) float32 in [0, 1]."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        drawn = [self._draw(rng) for _ in range(self.batch)]
        low, high = (np.stack([pair[i] for pair in drawn])[:, None] for i in (0, 1))
        return low.astype(np.float32) / np.float32(FULL), high.astype(np.float32) / np.float32(FULL)

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        picture = self.pictures[rng.choice(len(self.pictures), p=self.weights)]
        scale = self.scales[rng.integers(len(self.scales))]
        top, left = (int(rng.integers(n - self.patch + 1)) for n in picture.hr.shape)
        window = np.s_[top : top + self.patch, left : left + self.patch]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        return tuple(  # type: ignore[return-value]  # a generator's length is not known to mypy
            _turned(plane[window], turns, mirror) for plane in (picture.bicubic[scale], picture.hr)
        )


def batches(patches: Patches, first: int, last: int) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Steps first..last-1 with their batches."""
    for step in range(first, last):
        low, high = patches.at(step)
        yield step, low, high


def _turned(plane: NDArray[np.uint16], turns: int, mirror: bool) -> NDArray[np.uint16]:
    turned = np.rot90(plane, turns)
    return turned[:, ::-1] if mirror else turned


def _fixed(plane: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.round(np.clip(plane, 0, 1) * FULL).astype(np.uint16)
