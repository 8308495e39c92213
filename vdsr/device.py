"""What does this machine compute on, and in which precision?

`auto` takes CUDA where there is a card, else the CPU, and bf16 where it is faster, with the sensitive layers kept
higher (`vdsr.layers`, `vdsr/native/amx.cpp`): on cards that compute it, on CPUs with AMX, and by torch on CPUs with
AVX512-BF16, where our own code is not built; its fp32 is faster there.
"""

from __future__ import annotations

import math
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
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds that a container may compute, of how many; Linux' control groups, version 2."""
ENGINES = ("auto", "native", "torch")


class DeviceError(VdsrError):
    """The device or precision that was asked for is not here."""


class OutOfMemory(DeviceError):
    """Not even a small tile fits into the device's memory."""

    def __init__(self, device: object, side: int) -> None:
        super().__init__(device, side)
        self.device, self.side = device, side

    def __str__(self) -> str:
        return (
            f"{self.device} has too little free memory even for a tile of {self.side} x {self.side} pixels; end other "
            "programs that use it, run fewer workers on it, or choose another by --device or VDSR_DEVICE"
        )


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


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the middle layers: "fp32" gives float32, "bf16" bfloat16, "auto" what suits the device.

    Raises:
        DeviceError: an unknown precision, or one that the device lacks.
    """
    import torch

    if precision not in PRECISIONS:
        raise DeviceError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    if device.type != "cuda":
        wanted = precision == "bf16" or (precision == "auto" and cpu_computes_bf16())
        return torch.bfloat16 if wanted else torch.float32
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "bf16" and not has_bf16:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16; use fp32 or auto")
    return torch.bfloat16 if has_bf16 and precision != "fp32" else torch.float32


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
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(present, _quota()))


def cpu_computes_bf16() -> bool:
    """Whether this processor has bf16 arithmetic (AVX512-BF16 or AMX); elsewhere it is emulated, slower than fp32."""
    return "bf16" in _cpuinfo()


def cpu_has_amx() -> bool:
    """Whether this processor has matrix units for bf16, and the vectors that our code for them takes along."""
    return {"amx_tile", "amx_bf16", "avx512_bf16"} <= set(_cpuinfo().split())


def cpu_has_vnni() -> bool:
    """Whether this processor multiplies and adds pairs of 16-bit integers in one instruction of AVX-512."""
    return "avx512_vnni" in _cpuinfo().split()


def _quota() -> float:
    """Processors' worth of time that a container may take, rounded up: threads beyond that wait for one another."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control groups, or "max"
        return math.inf


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
