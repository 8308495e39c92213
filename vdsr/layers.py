"""In which precision does torch compute which layer, and how? The sensitive ones higher, channels last, no TF32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

SENSITIVE_LAYERS = 3
"""Hidden layers from the first on that stay above bf16: nearly all of its loss is the rounding of what they read."""


def layer_dtypes(depth: int, device_type: str, middle: torch.dtype) -> list[torch.dtype]:
    """The dtype of each layer's weights and of what it reads.

    Args:
        middle: of the layers that are not sensitive; float32 for all of them to be.
    """
    if middle == torch.float32:
        return [torch.float32] * depth
    # On a card fp32 would take longer than all other layers together. fp16 is as fast as bf16 and has three bits more;
    # its range, to 65,504, is enough where the first activations stay below 3.
    sensitive = torch.float16 if device_type == "cuda" else torch.float32
    hidden = [sensitive if layer <= SENSITIVE_LAYERS else middle for layer in range(1, depth - 1)]
    return [torch.float32, *hidden, torch.float32]


class Layers:
    """The network on a device, each layer in its precision."""

    def __init__(self, kernels: Sequence[Tensor], device: torch.device, dtypes: Sequence[torch.dtype]) -> None:
        self.weights = [
            kernel.detach().to(device, dtype, memory_format=torch.channels_last)
            for kernel, dtype in zip(kernels, dtypes, strict=True)
        ]

    def __call__(self, y: Tensor) -> Tensor:
        """(N, 1, H, W) float32 to the residual, the same, as `vdsr.model.VDSR.residual`."""
        x = y.to(memory_format=torch.channels_last)
        for weight in self.weights[:-1]:
            x = self.hidden(x.to(weight.dtype), weight)  # (N, 64, H, W)
        return torch.conv2d(x.to(self.weights[-1].dtype), self.weights[-1], padding=1)

    def hidden(self, x: Tensor, weight: Tensor) -> Tensor:
        """One layer with its ReLU."""
        return torch.conv2d(x, weight, padding=1).relu_()


@contextmanager
def inference(*, tune: bool = False) -> Iterator[None]:
    """No autograd, and no TF32: cuDNN would otherwise round fp32 to 10 bits; `tune` as `vdsr.cuda.CudaExecutor`."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=tune, allow_tf32=False):
        yield
