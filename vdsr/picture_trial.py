"""Does a card make of a picture what the host makes of it with the same network?

Overlapped copies, 16-bit samples and gathers differ by card, driver and version of torch; what a wrong one leaves
behind looks like a picture. Hence every engine proves itself before its first.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdsr.engine import whole
from vdsr.errors import VdsrError
from vdsr.interpolated import Interpolated
from vdsr.resize import Bicubic, plan_bicubic
from vdsr.schedule import SMALLEST

if TYPE_CHECKING:
    from vdsr.torch_engine import TorchEngine

SCALE = 1.5
LIMIT = 1
"""Code values of 8 bits: what rounding may change, where the last bits of luminance differ."""

log = logging.getLogger(__name__)


def can_be_trusted(engine: TorchEngine) -> bool:
    """Whether small pictures come out the same both ways; else that is logged."""
    before = engine.budget, engine.redone, engine.relieved
    # Of several areas, of which some are under way at a time, as large pictures are.
    engine.budget = replace(engine.budget, tile=SMALLEST, pixels=0, step=1)
    try:
        worst = max(_difference(engine, samples) for samples in trial_pictures())
        if worst <= LIMIT:
            return True
        reason = f"a trial picture is off by {worst:.3g} code values, over the limit of {LIMIT}"
    except (RuntimeError, VdsrError) as exc:
        reason = f"a trial picture failed: {exc}"
    finally:
        engine.budget, engine.redone, engine.relieved = before
    log.warning("on %s %s; bicubic and colour are computed on the host instead", engine.device, reason)
    return False


def trial_pictures() -> tuple[NDArray[Any], ...]:
    """(H, W, C): colour of 8 bits and gray of 16, with edges, noise and all of the range; the same everywhere."""
    y, x = np.mgrid[:61, :90]
    waves = np.stack([np.sin(x / 9 + y / 17 + turn) for turn in (0, 2, 4)], axis=-1) / 2 + 0.5
    waves += np.where((x // 16 + y // 16) % 2, 0.12, -0.12)[..., None]
    waves += np.random.default_rng(0).normal(0, 0.02, waves.shape)
    clipped = np.clip(waves, 0, 1)
    return np.round(clipped * 255).astype(np.uint8), np.round(clipped[..., :1] * 65535).astype(np.uint16)


def _difference(engine: TorchEngine, samples: NDArray[Any]) -> float:
    """The largest, in code values of 8 bits."""
    plan = plan_bicubic(samples.shape[:2], scale=SCALE)
    out = np.zeros((*plan.size, samples.shape[2]), samples.dtype)
    engine.pictures([samples], plan, [out], _nothing)
    wanted = _by_the_host(engine, samples, plan)
    unit = np.iinfo(samples.dtype).max / 255
    return float(np.abs(out.astype(np.float64) - wanted).max() / unit)


def _by_the_host(engine: TorchEngine, samples: NDArray[Any], plan: Bicubic) -> NDArray[Any]:
    picture, out = Interpolated(samples, plan), np.empty((*plan.size, samples.shape[2]), samples.dtype)
    y = np.ascontiguousarray(picture.luminance(0, plan.size[0]), np.float32)
    picture.write(y + whole(engine, y, _nothing), 0, slice(None), out)
    return out


def _nothing() -> None:
    pass
