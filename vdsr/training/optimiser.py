"""How do the weights move? By SGD as in the paper, by Adam, or by Muon, each under a schedule and with clipping.

Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"): the momentum of each hidden
layer, as a matrix, is replaced by the nearest orthogonal one, so that every direction of the layer moves alike. A
plain network of twenty layers without normalisation is badly conditioned, and gains much by it (docs/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdsr.training.recipe import Recipe

ENDS_SHARE = 0.2
"""Under Muon the first and the last layer, which are no square matrices, go by Adam with this share of the rate."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five steps of Newton and Schulz's iteration; for weights of the same shape."""

    def __init__(self, kernels: Sequence[Tensor], lr: float, momentum: float) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
            if not kernels:
                continue
            gradient = torch.stack([kernel.grad.flatten(1) for kernel in kernels])  # (layers, out, in * 9)
            state = self.state[kernels[0]]
            momentum = state.setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = orthogonal(gradient.lerp(momentum, group["momentum"]))  # Nesterov's look ahead
            for kernel, direction in zip(kernels, update, strict=True):
                kernel.add_(direction.reshape(kernel.shape), alpha=-group["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """(N, m, n) with m <= n to nearly orthogonal rows: singular values between 0.7 and 1.2, vectors kept.

    The quintic's coefficients are Jordan's, chosen for speed at zero rather than for exactness.
    """
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def make_optimisers(kernels: Sequence[Tensor], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimisers of a recipe; each group's "share" multiplies the learning rate of `learning_rate`."""
    rate, made = recipe.learning_rate, list[torch.optim.Optimizer]()
    if recipe.optimiser == "sgd":
        made.append(torch.optim.SGD(kernels, rate, recipe.momentum, weight_decay=recipe.weight_decay))
    elif recipe.optimiser == "adam":
        made.append(torch.optim.Adam(kernels, rate, weight_decay=recipe.weight_decay))
    else:
        made.append(Muon(kernels[1:-1], rate, recipe.momentum))
        made.append(torch.optim.Adam([kernels[0], kernels[-1]], rate * ENDS_SHARE))
    for optimiser in made:
        for group in optimiser.param_groups:
            group["share"] = group["lr"] / rate
    return made


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step, counted from 0."""
    rate, left = recipe.learning_rate, recipe.steps - step
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "linear":
        return rate * min(warm, left / min(recipe.decay_steps, recipe.steps))
    if recipe.schedule == "steps":
        return float(rate * warm * recipe.decay_factor ** (step // recipe.decay_steps))
    if step < recipe.warmup:
        return rate * warm
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def clip(kernels: Sequence[Tensor], recipe: Recipe, rate: float) -> None:
    """Bound the gradients as the recipe says."""
    if recipe.clip == "norm":
        torch.nn.utils.clip_grad_norm_(kernels, recipe.clip_at)
    elif recipe.clip == "adjustable":
        torch.nn.utils.clip_grad_value_(kernels, recipe.clip_at / rate)
