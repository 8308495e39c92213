"""How was docs/before-after.png made? A sample photograph shrunk by 3, restored by bicubic and by VDSR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdsr import Upscaler
from vdsr.resize import bicubic

HERE = Path(__file__).parent
SCALE, ZOOM = 3, 3
CROP = (96, 30, 216, 150)  # left, top, right, bottom of the face, in pixels of the original


def main() -> None:
    """Write the picture that the README shows."""
    truth = Image.open(HERE / "photos" / "astronaut.jpg").transpose(Image.Transpose.ROTATE_270).convert("RGB")
    planes = np.asarray(truth, np.float32).transpose(2, 0, 1)
    small = np.clip(np.round(bicubic(planes, scale=1 / SCALE)), 0, 255).astype(np.uint8)
    enlarged = np.clip(np.round(bicubic(small.astype(np.float32), scale=SCALE)), 0, 255).astype(np.uint8)
    panels = {
        "bicubic x3": Image.fromarray(enlarged.transpose(1, 2, 0)),
        "VDSR x3": Image.fromarray(Upscaler().upscale(small.transpose(1, 2, 0), SCALE)),
        "original": truth,
    }
    side, bar = (CROP[2] - CROP[0]) * ZOOM, 28
    sheet = Image.new("RGB", (side * len(panels) + 8 * (len(panels) - 1), side + bar), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, image) in enumerate(panels.items()):
        left = index * (side + 8)
        crop = image.crop(CROP).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(crop, (left, bar))
        draw.text((left + 4, 4), title, "black", font=ImageFont.load_default(18))
    sheet.save(HERE.parent / "docs" / "before-after.png", optimize=True)


if __name__ == "__main__":
    main()
