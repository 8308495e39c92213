"""How far does each optimiser get in the same number of steps? From random weights, on the same patches in one run.

python benchmarks/optimisers.py --data ../shared/data/train --steps 380

Prints the mean validation PSNR-Y over the scales. Rates are the best of a few tried for each.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from vdsr.data import Patches, batches
from vdsr.training.recipe import read_recipe
from vdsr.training.trainer import Trainer, validate
from worker.settings import load_settings
from worker.training.dataset import read_dataset

RATES = {"sgd": 0.1, "adam": 1e-3, "muon": 0.005}
PAPERS = {"loss": "l2", "clip": "adjustable", "clip_at": 1e-4}
"""SGD needs them: its steps are as large as its gradients."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=380)
    args = parser.parse_args()
    data = read_dataset([str(Path(args.data).resolve())], (2, 3, 4), 12, load_settings())
    for optimiser, rate in RATES.items():
        changes = {"optimiser": optimiser, "learning_rate": rate, "steps": args.steps, "patch": 48, "ema": 0.995}
        changes["decay_steps"] = args.steps * 6 // 10
        changes |= PAPERS if optimiser == "sgd" else {}
        recipe = read_recipe("best", {key: str(value) for key, value in changes.items()})
        trainer = Trainer(recipe, torch.device("cpu"))
        patches = Patches(data.train, patch=recipe.patch, batch=recipe.batch, seed=recipe.seed)
        for low, high in batches(patches, 0, recipe.steps):
            trainer.train_step(low, high)
        figures = validate(trainer.result, list(data.validation))
        mean = statistics.mean(network for _, network in figures.values())
        each = ", ".join(f"x{scale} {network:.2f}" for scale, (_, network) in figures.items())
        print(f"{optimiser:5} {mean:.3f} dB ({each}) after {recipe.steps} steps", flush=True)


if __name__ == "__main__":
    main()
