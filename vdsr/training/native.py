"""How does a processor without matrix units train fastest? In fp32 by our own code (vdsr/native/training.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vdsr.model import VDSR
from vdsr.native import Library


class NativeVDSR(nn.Module):
    """Computes what a VDSR computes, and its gradients, with the compiled code."""

    def __init__(self, model: VDSR, library: Library) -> None:
        super().__init__()
        self.model, self.library = model, library
        self._activations: Tensor | None = None  # kept from step to step: fresh pages would cost a tenth of it

    def forward(self, y: Tensor) -> Tensor:
        """As `VDSR.forward`."""
        residual: Tensor = _Residual.apply(self, y.contiguous(), *self.model.kernels)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y + residual

    def lend(self, size: int) -> Tensor:
        """`size` floats that nothing else uses until they are given back."""
        kept, self._activations = self._activations, None
        return kept if kept is not None and kept.numel() >= size else torch.empty(size)

    def give_back(self, activations: Tensor) -> None:
        """What `lend` gave; the next pass takes it."""
        self._activations = activations


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: NativeVDSR, y: Tensor, *kernels: Tensor) -> Tensor:
        config = module.model.config
        weights = torch.cat([kernel.detach().contiguous().flatten() for kernel in kernels])
        activations = module.lend(len(y) * module.library.activations(config.depth, *y.shape[2:]))
        ctx.module, ctx.activations = module, activations
        ctx.save_for_backward(y, weights)
        return module.library.forward(weights, config.depth, y, activations, threads=torch.get_num_threads())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        y, weights = ctx.saved_tensors
        model = ctx.module.model
        gradients = ctx.module.library.backward(
            weights,
            model.config.depth,
            y,
            upstream[0].contiguous(),
            ctx.activations,
            threads=torch.get_num_threads(),
        )
        ctx.module.give_back(ctx.activations)
        parts = gradients.split([kernel.numel() for kernel in model.kernels])
        return (None, None, *(part.view(kernel.shape) for part, kernel in zip(parts, model.kernels, strict=True)))
