"""What does the self-ensemble cost? One photograph with and without it, in turns.

python benchmarks/ensemble.py --rounds 5

Eight orientations are eight passes of the network; the rest of an image's way is walked once, and the halo between
bands is computed again. Ratios are medians of wall time, and of processor time, which a busy machine does not change.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vdsr import Upscaler
from vdsr.device import describe

PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "rocket.jpg"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="960x540", help="width x height of the input, which is doubled")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    image = np.asarray(Image.open(PHOTO).convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    upscaler = Upscaler()
    spent: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for round_ in range(args.rounds + 1):  # the first warms up
        for ensemble, times in spent.items():
            upscaler.self_ensemble = ensemble
            wall, processor = time.perf_counter(), time.process_time()
            upscaler.upscale(image, 2)
            if round_:
                times.append((time.perf_counter() - wall, time.process_time() - processor))
    pairs = list(zip(spent[True], spent[False], strict=True))
    row = {
        "size": f"{2 * width}x{2 * height}",
        "engine": upscaler.engine.name,
        "wall_ratio": statistics.median(more[0] / one[0] for more, one in pairs),
        "processor_ratio": statistics.median(more[1] / one[1] for more, one in pairs),
    }
    print(
        f"{row['size']}, {row['engine']}: {row['wall_ratio']:.2f} times the time, "
        f"{row['processor_ratio']:.2f} times the processor's"
    )
    if args.json:
        args.json.write_text(json.dumps({"machine": describe(torch.device("cpu")), "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
