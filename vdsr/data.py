"""What does the network learn from? Pairs of luminance patches: after bicubic down and up again, and as they were.

Every batch is a pure function of (seed, step): a run that is killed and resumed sees the same data as one that
was not, with no sampler state to keep.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vdsr.color import gray_to_y, rgb_to_y
from vdsr.errors import ImageUnreadable, TooLittleData
from vdsr.resize import bicubic

T = TypeVar("T")

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
FULL = 65535  # patches are kept as 16-bit fractions: a third of fp32's memory, 0.004 of an 8-bit step
PREPARED = "1"
"""Version of the kept arrays; to be raised when `_planes` gives other values."""
MAX_PIXELS = 100_000_000
"""Largest image that is decoded, if the caller does not say."""
OPEN = 256
"""Files of arrays that are open at once."""
DRAWING = 2
"""Threads that draw batches."""
AHEAD = 4
"""Batches drawn ahead."""


def image_paths(folder: Path) -> list[Path]:
    """Every image below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def read_luma(data: bytes, *, max_pixels: int) -> NDArray[np.float32]:
    """(H, W) float32 studio-range luminance / 255 of an image file, read as 8-bit RGB or gray.

    Raises:
        ImageUnreadable: no image, a damaged one, or one of more pixels than may be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:  # before anything is decoded: a small file may hold a huge one
                raise ImageUnreadable(f"{image.width:,} x {image.height:,} pixels, over the limit of {max_pixels:,}")
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N", "CMYK", "LAB"):  # would be clipped or off
                raise ImageUnreadable(f"mode {image.mode} is not trained on; convert it to 8-bit gray or RGB")
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"), np.float32) / 255
    except UnidentifiedImageError as exc:
        raise ImageUnreadable(f"no image of {', '.join(FORMATS)}") from exc
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:  # Pillow's ways to say no
        raise ImageUnreadable(str(exc) or type(exc).__name__) from exc
    y = gray_to_y(pixels) if pixels.ndim == 2 else rgb_to_y(pixels.transpose(2, 0, 1))
    return y.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Picture:
    """One training image: its luminance, and for each scale the same after bicubic down and up again."""

    planes: NDArray[np.uint16] | Path
    """(1 + scales, H, W): the truth, then what bicubic leaves of it; or the file that keeps them."""
    scales: tuple[float, ...]
    shape: tuple[int, int]
    sha256: str
    """Of the image's file."""

    @property
    def hr(self) -> NDArray[np.uint16]:
        """(H, W), the truth."""
        truth: NDArray[np.uint16] = self._arrays[0]
        return truth

    @property
    def bicubic(self) -> dict[float, NDArray[np.uint16]]:
        """(H, W) for each scale: the truth after bicubic down and up again."""
        return dict(zip(self.scales, self._arrays[1:], strict=True))

    @property
    def _arrays(self) -> NDArray[np.uint16]:
        return _mapped(self.planes) if isinstance(self.planes, Path) else self.planes


def prepare(path: Path, scales: Sequence[float], *, cache: Path | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read an image and degrade it by every scale, cropped so that the whole ones divide its size.

    Args:
        cache: a folder that keeps the result as an array on disk, mapped into memory: a collection may be larger
            than memory, and a run that is resumed starts at once.
        max_pixels: of the largest image that is decoded.

    Raises:
        ImageError: the file is no image that can be read, or too small for its scales.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, PermissionError, IsADirectoryError) as exc:  # others are the machine's fault
        raise ImageUnreadable(f"cannot be read: {exc.strerror}") from exc
    digest = hashlib.sha256(data).hexdigest()
    if cache is None:
        planes = _planes(path, data, scales, max_pixels)
        return Picture(planes, tuple(scales), planes.shape[1:], digest)
    kept = cache / f"{digest}-x{'-'.join(map(str, scales))}-{PREPARED}.npy"
    shape = _shape(kept)
    if shape is None:
        planes = _planes(path, data, scales, max_pixels)
        _keep(planes, kept)
        shape = planes.shape[1:]
    return Picture(kept, tuple(scales), shape, digest)


@dataclass(frozen=True)
class Dataset:
    """What a run learns from and what it is judged by."""

    train: Sequence[Picture]
    validation: Sequence[Picture]
    manifest: dict[str, Any]
    """Plain JSON: where the images come from, and each one's key and SHA-256."""

    @property
    def digest(self) -> str:
        """Of the images and the split, whatever their place."""
        sums = [[picture.sha256 for picture in part] for part in (self.train, self.validation)]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    @property
    def validation_digest(self) -> str:
        """Of the validation images: figures compare only where it is the same."""
        return hashlib.sha256(json.dumps([picture.sha256 for picture in self.validation]).encode()).hexdigest()


class Patches:
    """Draws batches of aligned patches from pictures held in memory."""

    def __init__(self, pictures: Sequence[Picture], *, patch: int, batch: int, seed: int) -> None:
        """Pictures smaller than a patch are left out.

        Raises:
            TooLittleData: no picture is as large as a patch.
        """
        self.pictures = [p for p in pictures if min(p.shape) >= patch]
        if not self.pictures:
            raise TooLittleData(
                f"none of {len(pictures)} pictures has {patch} x {patch} pixels; give larger ones, or a smaller patch"
            )
        self.patch, self.batch, self.seed = patch, batch, seed
        positions = np.array([(p.shape[0] - patch + 1) * (p.shape[1] - patch + 1) for p in self.pictures])
        self.weights = positions / positions.sum()  # every position of every picture is equally likely
        self.scales = sorted(self.pictures[0].scales)

    def at(self, step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The batch of a step: bicubic and true patches, each (batch, 1, patch, patch) float32 in [0, 1]."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        drawn = [self._draw(rng) for _ in range(self.batch)]
        low, high = (np.stack([pair[i] for pair in drawn])[:, None] for i in (0, 1))
        return low.astype(np.float32) / np.float32(FULL), high.astype(np.float32) / np.float32(FULL)

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        picture = self.pictures[rng.choice(len(self.pictures), p=self.weights)]
        scale = self.scales[rng.integers(len(self.scales))]
        top, left = (int(rng.integers(n - self.patch + 1)) for n in picture.shape)
        window = np.s_[top : top + self.patch, left : left + self.patch]
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        return tuple(  # type: ignore[return-value]  # a generator's length is not known to mypy
            _turned(plane[window], turns, mirror) for plane in (picture.bicubic[scale], picture.hr)
        )


def split(items: Sequence[T], held: int) -> tuple[list[T], list[T]]:
    """What to train on, and `held` items kept aside: spread evenly, so that each folder gives its share.

    Raises:
        TooLittleData: there are no more items than are to be kept aside.
    """
    if len(items) <= held:
        raise TooLittleData(
            f"{len(items)} images found; training needs more than the {held} kept for validation: "
            "give more images, or keep fewer (--validation)"
        )
    chosen = {(2 * i + 1) * len(items) // (2 * held) for i in range(held)}
    return [item for i, item in enumerate(items) if i not in chosen], [items[i] for i in sorted(chosen)]


def batches(
    patches: Patches, first: int, last: int, *, share: slice = slice(None)
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Batches of the steps first..last-1, drawn ahead on threads of their own.

    Args:
        share: which patches of each batch, for one of several processes that share the work.
    """
    steps = iter(range(first, last))
    with ThreadPoolExecutor(DRAWING, thread_name_prefix="patches") as pool:
        drawn = deque(pool.submit(patches.at, step) for step in islice(steps, AHEAD))
        while drawn:
            low, high = drawn.popleft().result()
            drawn.extend(pool.submit(patches.at, step) for step in islice(steps, 1))
            yield low[share], high[share]


def _planes(path: Path, data: bytes, scales: Sequence[float], max_pixels: int) -> NDArray[np.uint16]:
    """(1 + scales, H, W): the truth, then what bicubic leaves of it for each scale."""
    y = read_luma(data, max_pixels=max_pixels)
    # For fractions too it would cut too much (1.5, 2.5 and 3.5 together divide by 105): their last pixel hangs over
    multiple = math.lcm(*(int(s) for s in scales if s == int(s)))
    least = max(multiple, 2 * math.ceil(max(scales)) + 1)  # something must be left when it is shaved for validation
    height, width = (n - n % multiple for n in y.shape)
    if min(height, width) < least:
        raise ImageUnreadable(f"{path.name} has {y.shape[1]} x {y.shape[0]} pixels, less than {least} a side")
    y = y[:height, :width]
    lost = (bicubic(bicubic(y, scale=1 / s), scale=s)[:height, :width] for s in scales)
    return np.stack([_fixed(y), *map(_fixed, lost)])


@lru_cache(maxsize=OPEN)
def _mapped(path: Path) -> NDArray[np.uint16]:
    """The arrays of a file, mapped into memory; a mapping holds a file descriptor, and there are few of those."""
    planes: NDArray[np.uint16] = np.load(path, mmap_mode="r")
    return planes


def _shape(path: Path) -> tuple[int, int] | None:
    """(H, W) of a file's arrays; None if it is not there, or was cut short by a power failure."""
    try:
        planes = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return planes.shape[1], planes.shape[2]


def _keep(planes: NDArray[np.uint16], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, planes)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _turned(plane: NDArray[np.uint16], turns: int, mirror: bool) -> NDArray[np.uint16]:
    turned = np.rot90(plane, turns)
    return turned[:, ::-1] if mirror else turned


def _fixed(plane: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.round(np.clip(plane, 0, 1) * FULL).astype(np.uint16)
