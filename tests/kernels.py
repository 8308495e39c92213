"""What tests of the compiled code share."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest
import torch

from vdsr import native
from vdsr.model import VDSR
from vdsr.native import Library, Network


def built_for_tests(variant: str, precision: str) -> Library:
    """A library that any x86-64 of today can run; the test is skipped where there is no compiler, but not in CI."""
    found = native.built(variant, precision=precision)
    if found is None or native.library() is None:
        if os.environ.get("CI") and platform.machine() == "x86_64":
            pytest.fail("no compiled code was built; is there a C++ compiler?")
        pytest.skip("there is no compiled code")
    return found


def noise(*size: int) -> np.ndarray:
    """Luminance in [0, 1], the same for the same size."""
    return np.random.default_rng(size).random(size, np.float32)


def residual(library: Library, model: VDSR, y: np.ndarray, *, rows: int = 10_000, threads: int = 1) -> np.ndarray:
    """Of a plane that is given so many rows at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    stream = Network(library, model).stream(*y.shape)
    parts = [stream.push(y[start : start + rows]) for start in range(0, len(y), rows)]
    torch.set_num_threads(before)
    return np.concatenate(parts)
