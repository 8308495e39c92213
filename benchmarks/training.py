"""How long does a step of training take, by our compiled code and by torch? Interleaved, on patches of noise.

python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from vdsr.device import describe
from vdsr.training.recipe import read_recipe
from vdsr.training.trainer import Trainer


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    recipe = read_recipe(args.recipe)
    cpu = torch.device("cpu")
    kinds = {"torch fp32": ("fp32", False), "torch bf16": ("bf16", False), "ours fp32": ("fp32", True)}
    trainers = {
        name: Trainer(read_recipe(args.recipe, {"precision": precision}), cpu, native=native)
        for name, (precision, native) in kinds.items()
    }
    machine = describe(cpu)
    print(f"{machine['device']}, {machine['threads']} threads, compiled for {trainers['ours fp32'].native}")

    random = np.random.default_rng(0)
    shape = (recipe.batch, 1, recipe.patch, recipe.patch)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(args.steps + 1):  # the first warms up
        low, high = random.random(shape, np.float32), random.random(shape, np.float32)
        for name, trainer in trainers.items():
            began = time.perf_counter()
            trainer.train_step(low, high).item()
            if step:
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["torch fp32"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:10} {median:.3f} s a step, {base / median:.2f} x torch fp32")


if __name__ == "__main__":
    main()
