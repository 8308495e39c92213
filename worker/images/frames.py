"""How many pictures does a file hold? Counted to a limit, without decoding them where that can be."""

from __future__ import annotations

from PIL import Image

from vdsr.errors import ImageError
from worker.exif import count_pages
from worker.images.opening import reading

FRAMES_COUNTED = 1000
"""There may be millions, which take minutes to find."""


def note_frames(image: Image.Image, data: bytes, image_format: str, notes: list[str]) -> None:
    """Say so if there are pictures that are not looked at."""
    if image_format == "TIFF":
        frames = count_pages(data, FRAMES_COUNTED + 1)
    elif image_format == "GIF":
        frames, whole = _count_gif_frames(data, FRAMES_COUNTED + 1)
        if not whole:
            notes.append("first of several frames; a later one is damaged")
            return
    else:
        try:
            with reading(data, image_format):
                frames = getattr(image, "n_frames", 1)
        except ImageError:
            notes.append("first of several frames; a later one is damaged")
            return
    if frames > FRAMES_COUNTED:
        notes.append(f"first of more than {FRAMES_COUNTED:,} frames")
    elif frames > 1:
        notes.append(f"first of {frames:,} frames")


def _count_gif_frames(data: bytes, most: int) -> tuple[int, bool]:
    """Frames of a GIF, counted up to `most`, and whether the last of several ends; Pillow would count them all."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while at < len(data) and data[at] != 0x3B and frames < most:
        kind = data[at]
        if kind not in (0x2C, 0x21):
            at += 1
            continue
        if kind == 0x2C:
            frames += 1
            flags = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return frames, at <= len(data) or frames < 2
