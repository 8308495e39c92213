"""Does a kernel compute on this processor what the fp32 code computes, to within its precision?"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from vdsr.native import Network

RMS_LIMIT, PEAK_LIMIT = 0.1, 0.2
"""Largest differences to fp32, relative to the residual's own root mean square and peak. Seen were 0.008 and 0.009 with
the weights that ship in bf16, and up to 0.05 with untrained ones; a wrong tile, tap or margin gave 0.4 and more."""

log = logging.getLogger(__name__)


def can_be_trusted(network: Network, exact: Network) -> bool:
    """Whether it makes of a small plane what the fp32 code makes of it with the same weights; else that is logged."""
    plane = trial_plane()
    wanted = exact.stream(*plane.shape).push(plane)
    difference = network.stream(*plane.shape).push(plane) - wanted
    rms, peak = _ratio(_rms(difference), _rms(wanted)), _ratio(_peak(difference), _peak(wanted))
    if rms <= RMS_LIMIT and peak <= PEAK_LIMIT:  # what is no number fails
        return True
    log.warning(
        "on a trial plane %s is off by %.3g of the residual (%.3g at worst), over the limits of %g and %g; "
        "fp32 is computed instead",
        network.library.variant,
        rms,
        peak,
        RMS_LIMIT,
        PEAK_LIMIT,
    )
    return False


def trial_plane() -> NDArray[np.float32]:
    """(40, 100) float32 in [0, 1]: wide enough for two patches of every kernel, the same everywhere."""
    return np.random.default_rng(0).random((40, 100), np.float32)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _peak(values: NDArray[np.float32]) -> float:
    return float(np.abs(values).max())


def _ratio(difference: float, size: float) -> float:
    if difference == 0:  # a network that adds nothing
        return 0.0
    return difference / size if size else float("inf")
