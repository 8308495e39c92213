"""Which compiled code does this processor run, and how is it called?

`setup.py` builds the C++ beside this file into one library a kind of processor. A library that is missing, as where
there was no compiler, costs speed and nothing else: torch computes the same.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_VARIANTS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}
"""By what torch says of the processor: the libraries that it can run, best first."""
_NO_MEMORY = 1


class Library:
    """One built library; its functions do not hold the interpreter's lock while they run."""

    def __init__(self, variant: str, path: Path) -> None:
        self.variant = variant
        self._functions = ctypes.CDLL(str(path))
        self._functions.vdsr_activations.restype = ctypes.c_size_t

    def activations(self, depth: int, height: int, width: int) -> int:
        """How many floats `forward` keeps of a picture for `backward`."""
        return int(self._functions.vdsr_activations(depth, height, width))

    def forward(self, weights: Tensor, depth: int, y: Tensor, activations: Tensor, *, threads: int) -> Tensor:
        """The network's residual, with what `backward` needs.

        Args:
            weights: all kernels, (out, in, 3, 3) each, flattened one behind the other; float32.
            y: (N, 1, H, W) float32 in [0, 1].
            activations: at least N times `activations` float32, overwritten.

        Returns:
            (N, 1, H, W) float32.
        """
        n, _, height, width = y.shape
        residual = torch.empty_like(y)
        self._call("vdsr_forward", weights, depth, y, n, height, width, activations, residual, threads)
        return residual

    def backward(
        self, weights: Tensor, depth: int, y: Tensor, gradient: Tensor, activations: Tensor, *, threads: int
    ) -> Tensor:
        """The gradient of the weights, laid out as they are.

        Args:
            gradient: (N, 1, H, W) float32, of the residual.
            activations: as `forward` left them.
        """
        n, _, height, width = y.shape
        gradients = torch.empty_like(weights)
        self._call("vdsr_backward", weights, depth, y, gradient, n, height, width, activations, gradients, threads)
        return gradients

    def _call(self, function: str, *arguments: Tensor | int) -> None:
        for tensor in arguments:
            if isinstance(tensor, Tensor) and not (tensor.dtype == torch.float32 and tensor.is_contiguous()):
                raise ValueError(
                    f"{function} takes contiguous float32, not {tensor.dtype} with strides {tensor.stride()}"
                )
        passed = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int(a) for a in arguments]
        if getattr(self._functions, function)(*passed) == _NO_MEMORY:
            raise MemoryError(f"{function} needs more memory than there is; make the batch or the patch smaller")


@lru_cache(maxsize=1)
def libraries() -> list[Library]:
    """Those that were built and that this processor can run, best first."""
    variants = _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("generic",))
    folder = Path(__file__).parent
    return [Library(variant, path) for variant in variants for path in folder.glob(f"_{variant}.*.so")]


def library() -> Library | None:
    """The best one; None where none was built."""
    return next(iter(libraries()), None)
