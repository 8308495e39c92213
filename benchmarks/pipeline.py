"""What does a job cost beside the network? Jobs on a Redis and a worker of their own, against the network's own time.

python benchmarks/pipeline.py photos                     # 200 photographs that become 1 to 4 MP
python benchmarks/pipeline.py photos --format jpeg
python benchmarks/pipeline.py thumbnails                 # 10, 100, 1,000 and 10,000 of 64 x 64

The network's time is what the worker itself counts while it computes (`network` in an outcome's seconds); the rest of
a job's time is listing, queue, ledger, reading, decoding, bicubic, encoding, writing, as far as it was not hidden
behind the network. A small job first has the worker load everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdsr.device import describe
from worker.client import Client, draft
from worker.embedded import SOCKET, LocalRedis, LocalWorker
from worker.jobs import Options
from worker.parts import Parts, final_rows
from worker.settings import load_settings

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["photos", "thumbnails"])
    parser.add_argument("--images", type=int, nargs="*", help="how many, a job each")
    parser.add_argument("--format", default="same", help="of the output")
    parser.add_argument("--no-score", action="store_true", help="without the PSNR of each image")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    counts = args.images or ([200] if args.kind == "photos" else [10, 100, 1000, 10_000])
    options = Options(score=not args.no_score, format=args.format)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vdsr-") as name:
        folder = Path(name)
        settings = dataclasses.replace(load_settings(), redis_url=f"unix://{folder / SOCKET}", grace_s=0)
        with LocalRedis(folder), LocalWorker(settings, folder):
            client = Client.connect(settings)
            made = {count: pictures(folder / f"{count}", args.kind, count) for count in {10, *counts}}
            job_seconds(client, made[10], folder / "warm-up", options)
            for count in counts:
                row = job_seconds(client, made[count], folder / f"{count}-out", options)
                rows.append({"images": count, **row, "peak_rss_mb": peak_rss_mb()})
                report(rows[-1])
    if args.json:
        machine = describe(torch.device("cpu"))
        args.json.write_text(json.dumps({"machine": machine, "kind": args.kind, "rows": rows}, indent=1))


def pictures(folder: Path, kind: str, count: int) -> Path:
    """Photographs of 0.25 to 1 MP, or thumbnails, as JPEG; no two alike."""
    folder.mkdir()
    sources = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.iterdir()) if path.suffix != ".md"]
    rng = np.random.default_rng(0)
    for n in range(count):
        source = sources[n % len(sources)]
        if kind == "photos":
            factor = (rng.uniform(0.25e6, 1e6) / (source.width * source.height)) ** 0.5
            image = source.resize((round(source.width * factor), round(source.height * factor)), Image.BICUBIC)
        else:
            left, top = rng.integers(0, source.width - 64), rng.integers(0, source.height - 64)
            image = source.crop((left, top, left + 64, top + 64))
        image.save(folder / f"{n:05d}.jpg", quality=92)
    return folder


def job_seconds(client: Client, source: Path, target: Path, options: Options) -> dict[str, Any]:
    """Submit, wait, and add up what its outcomes say."""
    job = draft(str(source), str(target), options, client.settings)
    client.submit(job)
    record = client.wait(job.id)
    assert record is not None
    stages: Counter[str] = Counter()
    pixels = 0
    for row in final_rows(Parts(job, client.settings)).values():
        assert row.outcome == "done", row
        assert row.width is not None
        assert row.height is not None
        pixels += row.width * row.height
        stages.update(row.seconds)
    return {
        "megapixels": round(pixels / 1e6, 2),
        "wall_s": round(record.seconds, 3),
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.items()},
    }


def peak_rss_mb() -> int:
    """The largest memory that the worker ever had, which is the largest of our descendants."""
    return max(map(_high_water_mb, _descendants(os.getpid())))


def _descendants(pid: int) -> list[int]:
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [later for child in children for later in _descendants(child)]


def _high_water_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def report(row: dict[str, Any]) -> None:
    """A job in two lines."""
    stages, wall = row["stages_s"], row["wall_s"]
    network = stages["network"]
    print(
        f"{row['images']:6,} images, {row['megapixels']:8,.1f} MP: {wall:8.1f} s, network {network:8.1f} s: "
        f"ratio {wall / network:.3f}, {1000 * (wall - network) / row['images']:.2f} ms an image beside it; "
        f"peak {row['peak_rss_mb']} MB"
    )
    print("       ", ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items()), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("VDSR_MEMORY_BUDGET", "2G")
    main()
