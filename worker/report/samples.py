"""How does an image look before and after? A crop where it has most detail, by bicubic and as it was written."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdsr.color import rgb_to_y
from vdsr.errors import ImageError, ImageUnsupported
from vdsr.resize import plan_bicubic
from worker.errors import StorageError, StorageUnavailable
from worker.images import decode
from worker.jobs import Job, Outcome
from worker.settings import Settings
from worker.sizing import scale_for
from worker.storage import Storage

SIDE = 480
"""Of a crop, in pixels of the output."""
MOST_PIXELS = 64_000_000
"""Larger outputs are not shown: reading twenty of them would take minutes."""
QUALITIES = (92, 80, 60, 40)
"""Of WebP; the first that keeps a crop within MOST_BYTES, so that a page of forty stays under 10 MB."""
MOST_BYTES = 150_000


@dataclass(frozen=True)
class Sample:
    """One image's crop both ways, as data URIs, or the reason why there is none."""

    row: Outcome
    before: str = ""
    after: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""
    link: str = ""
    """To the whole output, from the page; empty where it is not on the page's disk."""


def sample(row: Outcome, job: Job, settings: Settings, *, source: Storage, target: Storage) -> Sample:
    """The crop of a finished image; never an error, since pictures may be gone by now."""
    if (row.width or 0) * (row.height or 0) > MOST_PIXELS:
        return Sample(row, missing=f"larger than {MOST_PIXELS / 1e6:,.0f} megapixels")
    try:
        lr = decode(source.read(row.key), max_pixels=settings.max_pixels).pixels
        sr = decode(target.read(row.output), max_pixels=settings.max_output_pixels).pixels
    except (ImageError, StorageError, StorageUnavailable) as exc:
        return Sample(row, missing=str(exc))
    lr, sr = _rgb(lr), _rgb(sr)
    scale: float | None = None
    with suppress(ImageUnsupported):
        scale = scale_for(job.options, lr.shape[:2])
    if not scale:
        return Sample(row, missing="source and output are no longer those of this job")
    plan = plan_bicubic(lr.shape[:2], scale=scale)
    if plan.size != sr.shape[:2]:
        return Sample(row, missing="source and output are no longer those of this job")
    top, left = most_detailed(lr, max(1, int(SIDE / scale)))
    rows = slice(round(top * scale), min(plan.size[0], round(top * scale) + SIDE))
    columns = slice(round(left * scale), min(plan.size[1], round(left * scale) + SIDE))
    low, high = plan.source_rows(rows.start, rows.stop)
    planes = lr[low:high].transpose(2, 0, 1).astype(np.float32)
    interpolated = plan.rows(planes, rows.start, rows.stop, low)[..., columns].transpose(1, 2, 0)
    before = np.clip(np.round(interpolated), 0, 255).astype(np.uint8)
    height, width = before.shape[:2]
    return Sample(row, _data_uri(before), _data_uri(sr[rows, columns]), width, height)


def most_detailed(pixels: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Top and left of the square, or what of it fits, with the largest sum of differences between neighbours."""
    y = rgb_to_y(pixels.transpose(2, 0, 1), peak=255)
    detail = np.zeros_like(y)
    detail[:, 1:] += np.abs(np.diff(y, axis=1))
    detail[1:] += np.abs(np.diff(y, axis=0))
    sums = np.pad(detail.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    height, width = (min(side, n) for n in y.shape)
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left)


def _rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of any picture; what is transparent is shown on gray."""
    peak = np.iinfo(pixels.dtype).max
    samples = pixels[..., None] if pixels.ndim == 2 else pixels
    if peak > 255:
        samples = np.round(samples / (peak / 255))
    alpha = samples[..., -1:].astype(np.float32) / 255 if samples.shape[2] in (2, 4) else None
    color = samples[..., :1] if samples.shape[2] < 3 else samples[..., :3]
    if alpha is not None:
        color = np.round(color * alpha + 128 * (1 - alpha))
    return np.ascontiguousarray(np.broadcast_to(color, (*color.shape[:2], 3)).astype(np.uint8))


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    data = b""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        data = buffer.getvalue()
        if len(data) <= MOST_BYTES:
            break
    return "data:image/webp;base64," + base64.b64encode(data).decode()
