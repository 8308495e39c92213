"""What does this machine compute on, and in which precision?

`auto` takes CUDA where there is a card, else the CPU, and fp32 on both but for CPUs with AMX: bf16 costs up to 0.15 dB
at x4 if every layer uses it, so that elsewhere it is taken only on request. Our AMX code keeps the sensitive layers
higher (`vdsr/native/amx.cpp`).
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdsr.errors import VdsrError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16")
ENGINES = ("auto", "native", "torch")


class DeviceError(VdsrError):
    """The device or precision that was asked for is not here."""


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a name: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from exc
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name} asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def choose_dtype(precision: str = "auto") -> torch.dtype:
    """The dtype of the hidden layers in torch: "auto" and "fp32" give float32, "bf16" bfloat16.

    Raises:
        DeviceError: an unknown precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise DeviceError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def describe(device: torch.device) -> dict[str, Any]:
    """What a figure that was measured on the device has to name: hardware, system and versions, as plain JSON."""
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numpy", "pillow")},
    }


def cores() -> int:
    """How many processors this process may use: not those that a container or `taskset` keeps from it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_computes_bf16() -> bool:
    """Whether this processor has bf16 arithmetic (AVX512-BF16 or AMX); elsewhere it is emulated, slower than fp32."""
    return "bf16" in _cpuinfo()


def cpu_has_amx() -> bool:
    """Whether this processor has matrix units for bf16, and the vectors that our code for them takes along."""
    return {"amx_tile", "amx_bf16", "avx512_bf16"} <= set(_cpuinfo().split())


def _processor() -> str:
    lines = _cpuinfo().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "CPU")


@lru_cache(maxsize=1)
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return ""
