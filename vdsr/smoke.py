"""Does a loaded network compute what its publisher's did? One small known tile tells, in milliseconds.

A checksum proves that the bytes arrived; this proves that this process, device and precision make of them what they
should: a broken kernel, driver or build shows here and not in somebody's pictures.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vdsr.errors import CheckpointError

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler

SIDE = 48
"""Pixels a side: some see their whole neighbourhood, others the border."""
TOLERANCE_EXACT, TOLERANCE_ROUNDED = 0.1 / 255, 2 / 255
"""Largest differences to what was recorded in fp32: a few times what recording in 16 bits costs, and what bf16 and
16-bit integers do (0.02 and 0.6 code values were seen), and far below what a wrong layer does."""
_FULL = 32767 / 4  # recorded as 16-bit fractions between -4 and 4


def tile() -> NDArray[np.float32]:
    """(48, 48) float32 in [16, 235] / 255: a ramp, waves of several widths, and a step edge; the same everywhere."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64) / SIDE
    waves = np.sin(40 * x * x) * np.cos(30 * y * y) / 4
    edge = np.where(x + y > 1, 0.25, 0.0)
    value = np.clip(0.25 + 0.25 * x + waves + edge, 0, 1)
    luminance: NDArray[np.float32] = ((16 + 219 * value) / 255).astype(np.float32)
    return luminance


def record(upscaler: Upscaler) -> str:
    """What this network makes of the tile, to be kept beside its weights.

    Raises:
        ValueError: the upscaler does not compute in fp32.
    """
    if not upscaler.engine.exact:
        raise ValueError(f"{upscaler.engine.name} rounds; record by one with precision='fp32'")
    out = upscaler.sharpen(tile())
    return base64.b64encode(np.round(np.clip(out, -4, 4) * _FULL).astype("<i2").tobytes()).decode()


def check(upscaler: Upscaler, recorded: str) -> None:
    """
    Raises:
        CheckpointError: the network makes something else of the tile than was recorded, or no finite numbers.
    """
    try:
        wanted = np.frombuffer(base64.b64decode(recorded, validate=True), "<i2").reshape(SIDE, SIDE) / _FULL
    except ValueError as exc:
        raise CheckpointError(f"the recorded output of the smoke test is damaged: {exc}") from exc
    difference = float(np.abs(upscaler.sharpen(tile()) - wanted).max())
    limit = TOLERANCE_EXACT if upscaler.engine.exact else TOLERANCE_ROUNDED
    if not difference <= limit:  # a difference that is no number fails too
        raise CheckpointError(
            f"on a known tile the network is off by {difference * 255:.3g} code values from what its publisher "
            f"recorded, over the limit of {limit * 255:g}; do not use it on this device"
        )
