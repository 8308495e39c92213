"""Does an output agree with its input when it is shrunk again?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vdsr.evaluate import lr_consistency, luminance
from vdsr.metrics import psnr_y
from vdsr.resize import bicubic
from vdsr.upscale import Upscaler


def smooth(height: int, width: int, channels: int = 3, peak: int = 255) -> NDArray[np.uint8 | np.uint16]:
    rng = np.random.default_rng(height + width)
    planes = bicubic(rng.random((channels, 12, 9)), size=(height, width)).clip(0, 1) * peak
    pixels = planes.round().transpose(1, 2, 0).astype(np.uint8 if peak == 255 else np.uint16)
    return pixels[..., 0] if channels == 1 else pixels


@pytest.mark.parametrize("scale", [1, 1.5, 2, 2.37, 3, 4, 3840 / 1013])
@pytest.mark.parametrize(("channels", "peak"), [(3, 255), (1, 255), (3, 65535)])
def test_what_the_network_makes_agrees_with_its_input(scale: float, channels: int, peak: int) -> None:
    lr = smooth(71, 53, channels, peak)

    assert lr_consistency(Upscaler().upscale(lr, scale), lr, scale) > (42 if scale >= 2 else 25)  # at x1 it sharpens


def test_a_shifted_tile_is_found() -> None:
    lr = np.asarray(Image.effect_noise((96, 96), 60).resize((192, 192)).convert("RGB"))
    sr = Upscaler().upscale(lr, 2)
    damaged = sr.copy()
    damaged[128:256, 128:256] = sr[136:264, 128:256]

    assert lr_consistency(sr, lr, 2) - lr_consistency(damaged, lr, 2) > 10


def test_equal_pictures_agree_wholly() -> None:
    lr = smooth(40, 40)

    assert lr_consistency(lr, lr, 1) == math.inf


def test_a_limit_compares_rows_round_the_middle() -> None:
    lr = smooth(200, 50)
    sr = Upscaler().upscale(lr, 2)

    y = bicubic(luminance(sr).astype(np.float32), scale=1 / 2)
    rows = slice(80, 120)
    expected = psnr_y(np.clip(np.round(y[rows]), 0, 255).astype(np.uint8), luminance(lr)[rows], shave=0)
    assert lr_consistency(sr, lr, 2, most_pixels=40 * 50) == expected
