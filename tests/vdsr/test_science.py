"""Colour, metrics, tiling, alpha and the network, each against literal or mathematical truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vdsr.alpha import bled
from vdsr.color import gray_to_y, rgb_to_ycbcr, y_to_gray, ycbcr_to_rgb
from vdsr.evaluate import Comparison, Score, mean_comparison
from vdsr.metrics import psnr_y, ssim
from vdsr.model import VDSR, VDSRConfig
from vdsr.tiling import spans

RNG = np.random.default_rng(7)


def test_primary_colours_have_the_code_values_of_bt601() -> None:
    rgb = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float).T.reshape(3, 1, 5)
    expected = [[16, 235, 81, 145, 41], [128, 128, 90, 54, 240], [128, 128, 240, 34, 110]]

    code_values = rgb_to_ycbcr(rgb).reshape(3, 5) * 255 + [[0], [128], [128]]

    assert np.round(code_values).astype(int).tolist() == expected


def test_colour_conversion_there_and_back_changes_nothing() -> None:
    rgb = RNG.random((3, 20, 30))

    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gray_is_treated_as_equal_red_green_and_blue(dtype: type[np.floating]) -> None:
    gray = RNG.random((90, 110)).astype(dtype)

    ycbcr = rgb_to_ycbcr(np.stack([gray] * 3))

    assert np.array_equal(ycbcr[0], gray_to_y(gray))
    assert not ycbcr[1:].any()
    assert np.array_equal(ycbcr_to_rgb(ycbcr), np.stack([y_to_gray(ycbcr[0])] * 3))
    np.testing.assert_allclose(y_to_gray(ycbcr[0]), gray, atol=8 * np.finfo(dtype).eps)


def test_one_code_value_off_everywhere_is_48_13_db() -> None:
    hr = np.full((20, 20), 100, np.uint8)

    assert psnr_y(hr + np.uint8(1), hr, shave=2) == pytest.approx(48.1308, abs=1e-4)


def test_equal_images_have_infinite_psnr_and_ssim_one() -> None:
    hr = RNG.integers(0, 256, (30, 40), dtype=np.uint8)

    assert psnr_y(hr, hr, shave=0) == math.inf
    assert ssim(hr, hr, shave=0) == 1.0


def test_shaved_borders_do_not_count() -> None:
    hr = np.full((20, 20), 100, np.uint8)
    sr = hr.copy()
    sr[:3], sr[:, -3:] = 0, 255

    assert psnr_y(sr, hr, shave=3) == math.inf
    assert psnr_y(sr, hr, shave=2) < 20


def test_ssim_equals_the_definition_pixel_by_pixel() -> None:
    a = RNG.integers(0, 256, (16, 14)).astype(np.uint8)
    b = np.clip(a + RNG.integers(-30, 30, a.shape), 0, 255).astype(np.uint8)
    axis = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x, y = (p[top : top + 11, left : left + 11].astype(float) for p in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy, cov = (
                (window * x * x).sum() - mx**2,
                (window * y * y).sum() - my**2,
                (window * x * y).sum() - mx * my,
            )
            c1, c2 = 6.5025, 58.5225
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))

    assert ssim(b, a, shave=0) == pytest.approx(np.mean(values), abs=1e-12)


def test_images_too_small_for_a_figure_are_refused() -> None:
    small = np.zeros((12, 30), np.uint8)

    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(small, small, shave=1)
    with pytest.raises(ValueError, match="cannot compare"):
        psnr_y(small, small.T, shave=0)


@pytest.mark.parametrize(("length", "tile", "halo"), [(1, 256, 20), (100, 7, 20), (512, 256, 20), (513, 256, 3)])
def test_tiles_cover_an_axis_once_and_see_their_halo(length: int, tile: int, halo: int) -> None:
    covered = []
    for span in spans(length, tile, halo):
        covered += list(range(span.start, span.stop))
        assert span.read_start == max(0, span.start - halo)
        assert span.read_stop == min(length, span.stop + halo)
        assert list(range(span.read_start, span.read_stop))[span.kept] == list(range(span.start, span.stop))

    assert covered == list(range(length))


def test_the_network_is_the_papers() -> None:
    model = VDSR()

    assert sum(p.numel() for p in model.parameters()) == 664_704
    assert len(model.layers) == 20
    assert all(layer.bias is None for layer in model.layers)
    assert model.config.halo == 20


def test_weights_start_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    deviations = [float(layer.weight.detach().std()) for layer in VDSR().layers[1:19]]

    assert deviations == pytest.approx([math.sqrt(2 / (9 * 64))] * 18, rel=0.02)


def test_a_pixel_sees_exactly_twenty_pixels_to_each_side() -> None:
    model = VDSR(VDSRConfig(channels=4)).double()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.abs_()  # no path can cancel another, and no ReLU closes
    y = torch.zeros(1, 1, 61, 61, dtype=torch.float64, requires_grad=True)
    (model(y)[0, 0, 30, 30]).backward()
    seen = (y.grad[0, 0] != 0).nonzero()

    assert seen.min().item() >= 10
    assert seen.max().item() <= 50


def test_colour_under_transparent_pixels_comes_from_their_neighbours() -> None:
    samples = np.zeros((200, 32, 4), np.uint8)
    samples[90:106, 8:24] = 230, 128, 26, 255

    assert (bled(samples)[..., :3] == (230, 128, 26)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (63, 64), (64, 3), (65, 17), (129, 40)])
def test_a_picture_in_bands_bleeds_as_in_one_piece(
    dtype: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = RNG.integers(0, np.iinfo(dtype).max, (*shape, 4), dtype=dtype, endpoint=True)
    samples[..., 3] *= RNG.integers(0, 2, shape, dtype=dtype)
    samples[0, 0, 3], samples[-1, -1, 3] = 0, np.iinfo(dtype).max
    in_bands = bled(samples)
    monkeypatch.setattr("vdsr.alpha.BAND", 1000)

    assert np.array_equal(in_bands, bled(samples))
    assert not np.array_equal(in_bands, samples)


def test_visible_pixels_keep_their_colour_exactly() -> None:
    samples = RNG.integers(0, 256, (121, 17, 4), dtype=np.uint8)
    samples[..., 3] = RNG.integers(0, 3, (121, 17)) * 127
    visible = samples[..., 3] > 0

    result = bled(samples)

    assert np.array_equal(result[visible], samples[visible])
    assert np.array_equal(result[..., 3], samples[..., 3])


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_that_is_all_hidden_or_all_visible_is_left_alone(value: int) -> None:
    samples = RNG.integers(0, 256, (5, 6, 2), dtype=np.uint8)
    samples[..., 1] = value

    assert bled(samples) is samples


def test_the_mean_of_worthless_pictures_is_zero_and_not_unknown() -> None:
    opposite = Comparison(bicubic=Score(0.0, None), vdsr=Score(0.0, 0.5))

    mean = mean_comparison([opposite, opposite])

    assert (mean.bicubic.psnr_y, mean.vdsr.psnr_y, mean.vdsr.ssim) == (0.0, 0.0, 0.5)
    assert math.isnan(mean_comparison([]).vdsr.psnr_y)
