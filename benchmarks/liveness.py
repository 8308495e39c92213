"""How much of a network works at all? The channels of each layer that are ever positive, and how many in a patch.

python benchmarks/liveness.py                                # the weights that ship, on the example photographs
python benchmarks/liveness.py weights.safetensors --noise    # others, on white noise

What is zero throughout a patch is left out of the products of our compiled code (docs/architecture.md), and what is
zero everywhere is capacity that training lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vdsr import checkpoint
from vdsr.evaluate import Degraded

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
SIDE = 240
"""Pixels of a photograph that are looked at."""
PATCH, STRIDE = (34, 38), (30, 36)
"""What a patch of vdsr/native/int16.cpp reads, and from one to the next."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", default=checkpoint.SHIPPED)
    parser.add_argument("--noise", action="store_true", help="white noise instead of photographs")
    args = parser.parse_args()
    model, identity = checkpoint.load(args.weights)
    planes = [noise()] if args.noise else list(photographs())
    print(f"{identity.version}: layer, channels that are never positive, share that is positive somewhere in a patch")
    shares = []
    with torch.inference_mode():
        for layer, kernel in enumerate(model.kernels[:-1]):
            planes = [torch.conv2d(plane, kernel, padding=1).relu() for plane in planes]
            live = torch.stack([live_share(plane) for plane in planes])  # (planes, channels)
            silent = int((live.amax(0) == 0).sum())
            shares.append(float(live.mean()))
            print(f"{layer + 1:2}  {silent:2} of {live.shape[1]}  {shares[-1]:.2f}")
    print(f"read by the hidden layers: {np.mean(shares[:-1]):.2f}")


def photographs() -> Iterator[Tensor]:
    """(1, 1, H, W) luminance, shrunk and enlarged by 2, 3 and 4."""
    for path in sorted(PHOTOS.iterdir()):
        if path.suffix != ".md":
            pixels = np.asarray(Image.open(path).convert("RGB"))[:SIDE, :SIDE]
            for scale in (2, 3, 4):
                yield torch.from_numpy(Degraded(pixels, scale).y)[None, None]


def noise() -> Tensor:
    """(1, 1, SIDE, SIDE) in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(0).random((1, 1, SIDE, SIDE), np.float32))


def live_share(plane: Tensor) -> Tensor:
    """(1, C, H, W) to (C,): in how many of its patches each channel is positive somewhere."""
    return (torch.nn.functional.max_pool2d(plane, PATCH, STRIDE) > 0).float().mean((0, 2, 3))


if __name__ == "__main__":
    main()
