"""How were the figures of docs/vdsr.md made? The network drawn to its numbers, and the residual of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vdsr import Upscaler
from vdsr.model import VDSRConfig
from vdsr.resize import bicubic

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
SCALE, ZOOM, STRONGER = 3, 3, 10
CROP = (96, 30, 216, 150)  # left, top, right, bottom, as in before_after.py
INK, SOFT, BLUE, RED = "#222", "#777", "#2b6cb0", "#c05621"


def main() -> None:
    """Write both figures."""
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / "network.svg").write_text(network(VDSRConfig()))
    residual_sheet().save(FIGURES / "residual.png", optimize=True)


def network(config: VDSRConfig) -> str:
    """An SVG: the bicubic image, the layers, the residual, and the way around them."""
    shown = [1, 2, 3, config.depth - 1, config.depth]
    places = [150, 200, 250, 380, 430]
    parts = [_box(20, "bicubic", "1 channel"), _box(490, "residual", "1 channel"), _box(640, "sharp", "1 channel")]
    for number, left in zip(shown, places, strict=True):
        parts.append(
            f'<rect x="{left}" y="70" width="26" height="90" rx="3" fill="{BLUE}"/>'
            f'<text x="{left + 13}" y="120" fill="#fff" text-anchor="middle">{number}</text>'
        )
    parts += [
        _line(90, 115, 150),
        _line(276, 115, 300),
        f'<text x="328" y="121" fill="{SOFT}" font-size="22" text-anchor="middle">. . .</text>',
        _line(356, 115, 380),
        _line(456, 115, 490),
        *(_line(left + 26, 115, left + 50) for left in (150, 200, 380)),
        f'<circle cx="600" cy="115" r="13" fill="#fff" stroke="{RED}" stroke-width="2"/>',
        f'<text x="600" y="121" fill="{RED}" font-size="18" text-anchor="middle">+</text>',
        _line(560, 115, 586),
        _line(613, 115, 640),
        f'<path d="M55 80 V35 H600 V100" fill="none" stroke="{RED}" stroke-width="2" marker-end="url(#tip)"/>',
        f'<text x="328" y="28" fill="{RED}" text-anchor="middle">around the network: the picture itself</text>',
        f'<text x="303" y="186" fill="{BLUE}" text-anchor="middle">{config.depth} convolutions of 3 x 3, '
        f"{config.channels} channels between them, ReLU after all but the last</text>",
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 205" font-family="sans-serif" font-size="14">\n'
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        f'<path d="M0 0 L6 3 L0 6 z" fill="{INK}"/></marker></defs>\n'
        '<rect width="730" height="205" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def residual_sheet() -> Image.Image:
    """Bicubic luminance of a photograph that was shrunk, the network's residual, and the sum, side by side."""
    photo = Image.open(HERE / "photos" / "astronaut.jpg").transpose(Image.Transpose.ROTATE_270).convert("L")
    small = bicubic(np.asarray(photo, np.float32)[None], scale=1 / SCALE)
    y = (16 + 219 * bicubic(small, scale=SCALE)[0] / 255) / 255  # studio range
    sharp = Upscaler(precision="fp32").sharpen(y.astype(np.float32))
    panels = {
        "bicubic x3": _gray(y),
        f"residual, {STRONGER} times": _gray(0.5 + STRONGER * (sharp - y)),
        "the sum": _gray(sharp),
    }
    side, bar = (CROP[2] - CROP[0]) * ZOOM, 28
    sheet = Image.new("L", (side * len(panels) + 8 * (len(panels) - 1), side + bar), 255)
    for index, (title, image) in enumerate(panels.items()):
        left = index * (side + 8)
        sheet.paste(image.crop(CROP).resize((side, side), Image.Resampling.NEAREST), (left, bar))
        ImageDraw.Draw(sheet).text((left + 4, 4), title, 0, font=ImageFont.load_default(18))
    return sheet


def _gray(y: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.round(y * 255), 0, 255).astype(np.uint8))


def _box(left: int, title: str, note: str) -> str:
    return (
        f'<rect x="{left}" y="80" width="70" height="70" rx="3" fill="#eee" stroke="{INK}"/>'
        f'<text x="{left + 35}" y="112" fill="{INK}" text-anchor="middle">{title}</text>'
        f'<text x="{left + 35}" y="132" fill="{SOFT}" font-size="11" text-anchor="middle">{note}</text>'
    )


def _line(start: int, y: int, stop: int) -> str:
    return f'<path d="M{start} {y} H{stop - 2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    main()
