"""How fast are the codecs, and how many threads of them does a GPU need? On 4 MP of photographs upscaled x2.

python benchmarks/codecs.py

Two threads at once show whether a codec releases the interpreter lock: 2.0 if they do not hinder one another. What
keeps up with a GPU is reckoned for 200 MP/s of output at scale 2: its encoders, and decoders of a quarter of that.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vdsr.device import describe
from worker.images import Extras, decode, encode

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
SIDE = 2048
GPU_MP_S = 200


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    pixels = mosaic()
    ways: dict[str, Callable[[], Any]] = {}
    sizes = {}
    for name, image_format, lossless in FORMATS:
        extras = Extras(lossless=lossless)
        data = encode(pixels, image_format, extras, quality=None)
        sizes[name] = len(data)
        ways[f"encode {name}"] = lambda f=image_format, e=extras: encode(pixels, f, e, quality=None)
        ways[f"decode {name}"] = lambda d=data: decode(d, max_pixels=SIDE * SIDE)
    ways["encode PNG by Pillow, level 1"] = lambda: by_pillow(pixels, 1)
    sizes["PNG by Pillow, level 1"] = len(by_pillow(pixels, 1))
    rows = measured(ways, args.rounds)
    for row in rows:
        row["bytes"] = sizes[row["way"].split(" ", 1)[1]]
        share = GPU_MP_S / (4 if row["way"].startswith("decode") else 1)
        row["threads_for_gpu"] = round(row["ms_mp"] * share / 1000, 1)
        print(
            f"{row['way']:32} {row['ms_mp']:7.1f} ms/MP, two at once {row['two_at_once']:.2f} x, "
            f"{row['bytes'] / 1e6:6.2f} MB; {GPU_MP_S} MP/s takes {row['threads_for_gpu']} threads"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe(torch.device("cpu")), "rows": rows}, indent=1))


FORMATS = (
    ("JPEG", "JPEG", False),
    ("PNG", "PNG", False),
    ("WebP", "WEBP", False),
    ("WebP, lossless", "WEBP", True),
    ("TIFF, deflate", "TIFF", False),
)


def mosaic() -> NDArray[np.uint8]:
    """Photographs upscaled x2 by Pillow's bicubic, side by side."""
    canvas, side = Image.new("RGB", (SIDE, SIDE)), 512
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.iterdir()) if path.suffix != ".md"]
    for n in range((SIDE // side) ** 2):
        source = sources[n % len(sources)]
        left = (n * 37) % max(1, source.width - side // 2)
        piece = source.crop((left, 0, left + side // 2, side // 2)).resize((side, side), Image.Resampling.BICUBIC)
        canvas.paste(piece, (n % (SIDE // side) * side, n // (SIDE // side) * side))
    return np.asarray(canvas)


def by_pillow(pixels: NDArray[np.uint8], level: int) -> bytes:
    """Pillow's PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def measured(ways: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Alone and two at a time, in turns; medians."""
    alone: dict[str, list[float]] = {name: [] for name in ways}
    together: dict[str, list[float]] = {name: [] for name in ways}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                alone[name].append(time.perf_counter() - began)
                began = time.perf_counter()
                for done in [pool.submit(way), pool.submit(way)]:
                    done.result()
                together[name].append(time.perf_counter() - began)
    megapixels = SIDE * SIDE / 1e6
    return [
        {
            "way": name,
            "ms_mp": 1000 * statistics.median(alone[name]) / megapixels,
            "two_at_once": 2 * statistics.median(alone[name]) / statistics.median(together[name]),
        }
        for name in ways
    ]


if __name__ == "__main__":
    main()
