"""The published figures, and ours, on the literature's test sets; skipped where those are not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vdsr import Upscaler
from vdsr.data import image_paths
from vdsr.evaluate import mean_comparison, score_degraded
from vdsr.pillow import to_array

SETS = Path(__file__).parents[3] / "shared" / "data" / "test"
BICUBIC = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.23, 0.8687),
    ("Set14", 3): (27.54, 0.7736),
    ("Set14", 4): (26.00, 0.7019),
    ("BSD100", 2): (29.56, 0.8431),
    ("BSD100", 3): (27.21, 0.7384),
    ("BSD100", 4): (25.96, 0.6674),
}
"""../shared/data/README.md: PSNR-Y and SSIM as reproduced, to the last digit printed there."""

pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(not SETS.exists(), reason="the image sets are not here"),
]


class Bicubic(Upscaler):
    """An upscaler without its network: the baseline of every table, in a hundredth of the time."""

    def __init__(self) -> None:
        pass

    def sharpen(self, y: np.ndarray, *, on_tile: object = None) -> np.ndarray:
        return y.astype(np.float32)


def figures(upscaler: Upscaler, name: str, scale: float) -> tuple[float, float, float]:
    """Bicubic PSNR-Y and SSIM, and the gain of the network, means over a set."""
    images = [to_array(Image.open(path)) for path in image_paths(SETS / name)]
    mean = mean_comparison([score_degraded(upscaler, pixels, scale) for pixels in images])
    assert mean.bicubic.ssim is not None
    return round(mean.bicubic.psnr_y, 2), round(mean.bicubic.ssim, 4), mean.gain_db


@pytest.mark.parametrize(("name", "scale"), BICUBIC)
def test_bicubic_comes_out_at_the_published_figures(name: str, scale: int) -> None:
    assert figures(Bicubic(), name, scale)[:2] == BICUBIC[name, scale]


@pytest.mark.parametrize(("scale", "gain_db"), [(1.5, 1.5), (2, 3.3), (3, 2.7), (4, 2.3)])
def test_the_shipped_weights_gain_on_set5_what_was_promised(scale: float, gain_db: float) -> None:
    assert figures(Upscaler(device="cpu"), "Set5", scale)[2] >= gain_db
