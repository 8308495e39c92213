"""The engine that only waits: it takes its time, and nobody takes what it makes for a result."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vdsr import checkpoint
from vdsr.metrics import psnr_y
from vdsr.stand_in import identity, make_stand_in, stand_in_seconds
from vdsr.upscale import Upscaler


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("timed:0.01", 0.01), ("timed:0", 0.0), ("timed:3601", None), ("timed:-1", None), ("timed:", None), (None, None)],
)
def test_a_stand_in_is_known_by_its_name(name: str | None, seconds: float | None) -> None:
    assert stand_in_seconds(name) == seconds


def test_it_takes_its_time_for_each_image() -> None:
    small = np.zeros((3, 16, 16), np.float32)
    waiting, hasty = make_stand_in("timed:0.2"), make_stand_in("timed:0")
    hasty.sharpen_alike(small)

    began = time.perf_counter()
    waiting.sharpen_alike(small)

    assert time.perf_counter() - began >= 0.6


def test_its_pictures_are_striped_beyond_any_doubt() -> None:
    photo = np.full((40, 300, 3), 120, np.uint8)

    made, real = make_stand_in("timed:0").upscale(photo), Upscaler(device="cpu").upscale(photo)

    assert made.shape == real.shape
    assert psnr_y(made[..., 1], real[..., 1], shave=0) < 15
    row = made[5, :, 1].astype(int)
    assert np.ptp(row) > 100
    assert sorted(set(np.diff(np.flatnonzero(np.abs(np.diff(row)) > 50)))) == [4]  # every stripe is as wide


def test_no_weights_have_its_digest() -> None:
    assert identity("timed:0").sha256 != identity("timed:0.1").sha256 != checkpoint.identify().sha256
    assert make_stand_in("timed:0").identity == identity("timed:0")
