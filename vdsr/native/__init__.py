"""Which compiled code does this processor run, and how is it called?

`setup.py` builds the C++ beside this file into one library a kind of processor: the fp32 code for each width of vector
registers, the same in 16-bit integers (`vdsr.native.int16`), and the bf16 code for matrix units (`vdsr.native.amx`),
with an emulation of it for the tests. A library that is missing, as where there was no compiler, costs speed and
nothing else: torch computes the same.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdsr.model import VDSR
from vdsr.native.order import seldom_zero_first

_VARIANTS = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}
"""By what torch says of the processor: the libraries that it can run, best first."""
_NO_MEMORY = 1
TOO_MANY_THREADS = "the network needs more memory than there is; use fewer threads"
CHANNELS = 64
"""Of the networks that it computes: the layout of its memory is made for them."""


class Library:
    """One built library; its functions do not hold the interpreter's lock while they run. Only those for fp32 train."""

    def __init__(self, variant: str, path: Path, *, precision: str = "fp32") -> None:
        self.variant, self.precision = variant, precision
        self.functions = ctypes.CDLL(str(path))
        self.functions.vdsr_network.restype = self.functions.vdsr_stream.restype = ctypes.c_void_p

    def activations(self, depth: int, height: int, width: int) -> int:
        """How many floats `forward` keeps of a picture for `backward`."""
        function = self.functions.vdsr_activations
        function.restype = ctypes.c_size_t
        return int(function(depth, height, width))

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
        if getattr(self.functions, function)(*passed) == _NO_MEMORY:
            raise MemoryError(f"{function} needs more memory than there is; make the batch or the patch smaller")


class Network:
    """A network's weights, prepared for inference; `tile` is the side of what is rounded together."""

    def __init__(self, library: Library, model: VDSR) -> None:
        if model.config.channels != CHANNELS:
            raise ValueError(f"the compiled code computes {CHANNELS} channels, not {model.config.channels}; use torch")
        kernels = [kernel.detach().float().cpu() for kernel in model.kernels]
        if library.precision == "int16":
            kernels = seldom_zero_first(kernels, library.functions.vdsr_lanes())
        weights = torch.cat([kernel.flatten() for kernel in kernels])
        self.library, self.depth = library, model.config.depth
        self.tile = library.functions.vdsr_tile()
        address = library.functions.vdsr_network(
            ctypes.c_void_p(weights.data_ptr()), self.depth, torch.get_num_threads()
        )
        self.address = _address(address, "a network")
        # Not at exit: another thread may be computing then.
        weakref.finalize(self, library.functions.vdsr_network_free, self.address).atexit = False

    def stream(self, height: int, width: int) -> Stream:
        """An image of this size is to come, from its first row on."""
        return Stream(self, height, width)

    def residuals(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, H, W) in [0, 1] to (N, H, W), to the bit as by `stream`: each thread does one image after the other.

        Raises:
            ValueError: another shape or dtype.
            MemoryError: there is not enough.
        """
        if planes.ndim != 3 or planes.dtype != np.float32:
            raise ValueError(f"{planes.dtype} of {planes.shape} was given; give float32 of (N, H, W)")
        planes = np.ascontiguousarray(planes)
        out = np.empty_like(planes)
        inputs, outputs = (ctypes.c_void_p(array.ctypes.data) for array in (planes, out))
        threads = torch.get_num_threads()
        if self.library.functions.vdsr_residuals(self.address, inputs, *planes.shape, outputs, threads) < 0:
            raise MemoryError(TOO_MANY_THREADS)
        return out


class Stream:
    """Takes an image's rows in order, and gives the residual's rows as soon as they can be known."""

    def __init__(self, network: Network, height: int, width: int) -> None:
        self._network, self._width, self._left = network, width, height
        functions = network.library.functions
        self._delay = functions.vdsr_stream_delay(network.depth)
        self._address = _address(functions.vdsr_stream(network.address, height, width), f"{width} columns")
        weakref.finalize(self, functions.vdsr_stream_free, self._address).atexit = False

    def push(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, W) in [0, 1], the next rows, to (0 or more, W), the residual's next rows.

        Raises:
            ValueError: other widths, other dtypes, or more rows than the image has.
            MemoryError: there is not enough.
        """
        if rows.ndim != 2 or rows.shape[1] != self._width or len(rows) > self._left or rows.dtype != np.float32:
            wanted = f"float32 of up to ({self._left}, {self._width})"
            raise ValueError(f"{rows.dtype} of {rows.shape} was given; {wanted} is what is left of the image")
        rows = np.ascontiguousarray(rows)
        out = np.empty((len(rows) + self._delay, self._width), np.float32)
        given: int = self._network.library.functions.vdsr_stream_push(
            self._address,
            ctypes.c_void_p(rows.ctypes.data),
            len(rows),
            ctypes.c_void_p(out.ctypes.data),
            torch.get_num_threads(),
        )
        if given < 0:
            raise MemoryError(TOO_MANY_THREADS)
        self._left -= len(rows)
        return out[:given]


def _address(address: int | None, what: str) -> ctypes.c_void_p:
    if address is None:
        raise MemoryError(f"{what} cannot be held: there is not enough memory")
    return ctypes.c_void_p(address)


@lru_cache(maxsize=1)
def libraries() -> list[Library]:
    """Those that were built for fp32 and that this processor can run, best first."""
    variants = _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("generic",))
    return [found for variant in variants if (found := built(variant)) is not None]


def library() -> Library | None:
    """The best one; None where none was built."""
    return next(iter(libraries()), None)


def built(variant: str, *, precision: str = "fp32") -> Library | None:
    """A library by its name, loaded; None where it was not built. Whether the processor can run it is not asked."""
    paths = Path(__file__).parent.glob(f"_{variant}_{precision}.*.so")
    return next((Library(variant, path, precision=precision) for path in paths), None)
