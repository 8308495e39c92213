"""How do time and memory grow with the image? One process for each size, from 0.1 to 100 megapixels and more.

python benchmarks/sizes.py --megapixels 0.1 1 10 100 200

Each process decodes a JPEG photograph of a quarter of the size, upscales it x2, encodes and writes it, along the line
that workers use (`worker.pipeline`), and tells its seconds and the largest memory that it had.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "rocket.jpg"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.1, 0.3, 1, 3, 10, 30, 100])
    parser.add_argument("--formats", nargs="+", default=["png"], help="of the output")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in the process of one size: its folder
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(Path(args.one), args.formats[0])))
        return
    rows = []
    for image_format in args.formats:
        for megapixels in args.megapixels:
            with tempfile.TemporaryDirectory(prefix="vdsr-") as folder:
                make_photo(Path(folder) / "photo.jpg", megapixels / 4)
                command = [sys.executable, __file__, "--one", folder, "--formats", image_format]
                row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"format": image_format, **row})
            print(
                f"{image_format}: {row['megapixels']:7.1f} MP: {row['seconds']:7.2f} s, network "
                f"{row['network_s']:7.2f} s, {row['seconds'] / row['megapixels']:.2f} s/MP; peak {row['peak_mb']:,} MB",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


def make_photo(path: Path, megapixels: float) -> None:
    """A photograph of 3:2."""
    from PIL import Image

    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    Image.open(PHOTO).resize((round(1.5 * height), height), Image.Resampling.BICUBIC).save(path, quality=92)


def one(folder: Path, image_format: str) -> dict[str, Any]:
    """Upscale the photograph in the folder."""
    from vdsr import Upscaler, checkpoint
    from worker.jobs import Image, Job, Model, Options
    from worker.pipeline import Pipeline
    from worker.settings import load_settings
    from worker.uris import open_storage

    settings = load_settings()
    identity = checkpoint.identify()
    options = Options(format=image_format)
    job = Job("size", str(folder), f"{folder}/out", options, Model(identity.version, identity.sha256), created=0.0)
    source, target = open_storage(job.source, settings), open_storage(job.destination, settings)
    line = Pipeline(job, Upscaler(device="cpu"), settings, source=source, target=target, reference=None)
    image = Image("photo.jpg", 0, "", f"photo.{image_format}", None)
    (((_, row),),) = line.run([(0, image)], on_start=lambda numbers: None, on_tile=lambda: None)
    if row.outcome != "done":
        raise SystemExit(str(row))
    assert row.width is not None
    assert row.height is not None
    parts = ("fetch", "decode", "upscale", "score", "encode", "write")
    return {
        "megapixels": row.width * row.height / 1e6,
        "seconds": sum(row.seconds.get(name, 0) for name in parts),
        "network_s": row.seconds["network"],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def machine() -> dict[str, Any]:
    """Where this was measured."""
    import torch

    from vdsr.device import describe

    return describe(torch.device("cpu"))


if __name__ == "__main__":
    main()
