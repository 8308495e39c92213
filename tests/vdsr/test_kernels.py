"""Do the kernels that are not fp32 compute what fp32 does, the same to the bit in any pieces?

Where the processor has no matrix unit, its instructions are emulated and everything else is tested.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kernels import built_for_tests, noise, residual
from PIL import Image

from vdsr import Upscaler, checkpoint, native, smoke
from vdsr.errors import CheckpointError
from vdsr.evaluate import score_degraded
from vdsr.model import VDSR, VDSRConfig
from vdsr.native import Library, Network, amx, int16, trial
from vdsr.native.order import seldom_zero_first
from vdsr.native_engine import NativeEngine

SIZES = [(1, 1), (1, 150), (150, 1), (41, 41), (33, 107)]
OFF = 0.02
"""How far from fp32 at most, relative to the largest, even of random weights and noise."""
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(params=["amx_emulated bf16", "amx bf16", "avx2 int16", "avx512 int16"])
def library(request: pytest.FixtureRequest) -> Library:
    variant, precision = request.param.split()
    if variant == "amx":
        return amx.library() or pytest.skip("this processor has no AMX, or this process may not use it")
    if variant == "avx512" and (here := int16.library()) is not None and here.variant == variant:
        return here
    if variant == "avx512":
        pytest.skip("this processor has no AVX-512 with VNNI, or there is no compiled code")
    return built_for_tests(variant, precision)


@pytest.fixture(scope="module")
def model() -> VDSR:
    return checkpoint.load()[0]


def exact(model: VDSR, y: np.ndarray) -> np.ndarray:
    compiled = native.library()
    assert compiled is not None
    return residual(compiled, model, y)


def off(library: Library, model: VDSR, y: np.ndarray) -> float:
    wanted = exact(model, y)
    return float(np.abs(residual(library, model, y) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("size", SIZES)
def test_it_gives_the_same_bits_for_any_rows_at_a_time_and_any_threads(
    library: Library, model: VDSR, size: tuple[int, int]
) -> None:
    y = noise(*size)
    expected = residual(library, model, y)

    for rows, threads in [(1, 1), (7, 2), (64, 3), (10_000, 3)]:
        assert np.array_equal(residual(library, model, y, rows=rows, threads=threads), expected), (rows, threads)


@pytest.mark.parametrize("size", SIZES)
def test_it_stays_close_to_fp32_even_on_noise(library: Library, model: VDSR, size: tuple[int, int]) -> None:
    y = noise(*size)

    wanted = exact(model, y)
    difference = residual(library, model, y) - wanted

    assert np.abs(difference).max() < OFF * np.abs(wanted).max()
    assert np.sqrt(np.square(difference).mean()) < OFF * np.sqrt(np.square(wanted).mean())


@pytest.mark.parametrize("scale", [1.5, 2, 3, 4])
def test_it_costs_less_than_a_hundredth_of_a_decibel(library: Library, model: VDSR, scale: float) -> None:
    upscaler, losses = Upscaler(device="cpu", precision="fp32"), []
    fp32 = upscaler.engine

    for photo in sorted(PHOTOS.glob("*.jpg"))[:3]:
        pixels = np.asarray(Image.open(photo).convert("RGB"))[:240, :240]
        found = []
        for engine in (fp32, NativeEngine(Network(library, model))):
            upscaler.engine = engine
            found.append(score_degraded(upscaler, pixels, scale, with_ssim=False).vdsr.psnr_y)
        losses.append(found[0] - found[1])

    assert len(losses) == 3
    assert np.mean(losses) < 0.005
    assert max(losses) < 0.01


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 8])
def test_a_network_may_have_another_depth(library: Library, depth: int) -> None:
    torch.manual_seed(depth)
    model, y = VDSR(VDSRConfig(depth=depth)), noise(45, 130)

    assert off(library, model, y) < OFF


def test_many_bands_and_patches_give_what_a_strip_of_them_gives(library: Library) -> None:
    torch.manual_seed(0)
    model, y = VDSR(VDSRConfig(depth=4)), noise(700, 420)  # more bands than are awaited together

    margin = 4 * Network(library, model).tile

    whole = residual(library, model, y, rows=50, threads=3)
    strip, band = residual(library, model, y[:, 150:301]), residual(library, model, y[330:400])

    assert np.array_equal(strip[:, margin:-margin], whole[:, 150 + margin : 301 - margin])
    assert np.array_equal(band[margin:-margin], whole[330 + margin : 400 - margin])
    assert np.abs(whole - exact(model, y)).max() < OFF * np.abs(whole).max()


def test_a_second_image_does_not_see_the_first(library: Library, model: VDSR) -> None:
    network, y = Network(library, model), noise(30, 40)

    first, _, second = (network.stream(30, 40).push(image) for image in (y, 1 - y, y))

    assert np.array_equal(first, second)


@pytest.mark.parametrize("size", [(1, 1), (41, 30), (128, 128)])
def test_small_images_that_are_computed_together_give_the_bits_of_each(
    library: Library, model: VDSR, size: tuple[int, int]
) -> None:
    network, planes = Network(library, model), noise(3, *size)

    alone = [network.stream(*size).push(plane) for plane in planes]

    assert np.array_equal(network.residuals(planes), np.stack(alone))


@pytest.mark.parametrize("brightness", [1e-6, 1e6])
def test_the_dark_and_the_bright_are_held_equally_well(library: Library, brightness: float) -> None:
    torch.manual_seed(0)
    model, y = VDSR(VDSRConfig(depth=5)), noise(40, 90)
    y[:, ::2] *= brightness  # side by side, in one tile
    y[:, 60:] = brightness * noise(40, 30)

    assert off(library, model, np.float32(y)) < OFF


def test_channels_without_weights_give_nothing(library: Library) -> None:
    torch.manual_seed(0)
    model, y = VDSR(VDSRConfig(depth=5)), noise(40, 90)
    with torch.no_grad():
        model.kernels[2][::2] = 0
        model.kernels[3].zero_()

    assert not residual(library, model, y).any()


def test_channels_that_are_zero_in_part_of_a_picture_are_left_out_there_only(library: Library, model: VDSR) -> None:
    y = noise(120, 160)
    y[:, :70] = y[70:] = 0  # without biases, the network makes nothing of black

    found = residual(library, model, y)

    assert np.abs(found - exact(model, y)).max() < OFF * np.abs(found).max()
    assert np.abs(found[:, :50]).max() < 1e-4 * np.abs(found).max()  # tiles are rounded together
    assert not residual(library, model, np.zeros_like(y)).any()


def test_the_order_of_channels_changes_no_bit_of_integers(model: VDSR, monkeypatch: pytest.MonkeyPatch) -> None:
    library, y = built_for_tests("avx2", "int16"), noise(41, 107)
    ordered = residual(library, model, y)
    monkeypatch.setattr("vdsr.native.seldom_zero_first", lambda kernels, lanes: kernels)

    assert np.array_equal(residual(library, model, y), ordered)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_channels_that_are_seldom_zero_come_first(model: VDSR, lanes: int) -> None:
    ordered = VDSR(model.config)
    with torch.no_grad():
        for mine, kernel in zip(ordered.kernels, seldom_zero_first(model.kernels, lanes), strict=True):
            mine.copy_(kernel)
        x = y = torch.from_numpy(smoke.tile())[None, None]
        assert torch.allclose(ordered.residual(y), model.residual(y), atol=1e-6)
        for kernel in ordered.kernels[:-2]:
            x = torch.conv2d(x, kernel, padding=1).relu()
            positive = (x > 0).sum((0, 2, 3)).view(-1, 2, lanes)
            pairs = positive.sum(1).flatten().tolist()

            assert pairs == sorted(pairs, reverse=True)
    assert torch.equal(ordered.kernels[-1], model.kernels[-1])


def test_broken_weights_end_the_work(library: Library) -> None:
    model, _ = checkpoint.load()
    with torch.no_grad():
        for kernel in model.kernels:
            kernel.mul_(300)

    with pytest.raises(CheckpointError, match="weights are broken"):
        NativeEngine(Network(library, model)).stream(9, 9, lambda: None).push(np.ones((9, 9), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_luminance_that_is_no_number_is_named_as_such(library: Library, model: VDSR, value: float) -> None:
    y = noise(40, 90)
    y[20, 50] = value

    with pytest.raises(ValueError, match="luminance"):
        NativeEngine(Network(library, model)).stream(40, 90, lambda: None).push(y)


def test_one_pixel_that_is_no_number_is_seen_as_far_as_it_reaches(library: Library, model: VDSR) -> None:
    y = noise(60, 90)
    y[30, 50] = np.nan

    found = np.isnan(residual(library, model, y))

    assert found[10:51, 30:71].all()


def test_integers_are_taken_where_nothing_is_faster(model: VDSR, monkeypatch: pytest.MonkeyPatch) -> None:
    integers = built_for_tests("avx2", "int16")
    monkeypatch.setattr("vdsr.native.amx.library", lambda: None)
    monkeypatch.setattr("vdsr.native.int16.library", lambda: integers)

    names = {precision: Upscaler(device="cpu", precision=precision).engine for precision in ("auto", "fp32", "bf16")}

    assert (names["auto"].name, names["auto"].exact, names["auto"].halo) == ("native avx2 int16", False, 120)
    assert names["fp32"].exact
    assert names["bf16"].name == "torch cpu bf16"


@pytest.mark.parametrize(
    ("vectors", "vnni", "expected"),
    [("AVX512", True, "avx512"), ("AVX512", False, None), ("AVX2", False, "avx2"), ("DEFAULT", False, None)],
)
def test_the_processor_decides_which_integers(
    vectors: str, vnni: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: vectors)
    monkeypatch.setattr("vdsr.native.int16.cpu_has_vnni", lambda: vnni)
    monkeypatch.setattr("vdsr.native.int16.built", lambda variant, precision: (variant, precision))

    assert int16.library.__wrapped__() == (expected and (expected, "int16"))


def test_a_kernel_for_another_network_fails_its_trial(model: VDSR) -> None:
    torch.manual_seed(0)
    compiled = native.library()
    integers = built_for_tests("avx2", "int16")
    assert compiled is not None

    assert trial.can_be_trusted(Network(integers, model), Network(compiled, model))
    assert not trial.can_be_trusted(Network(integers, VDSR()), Network(compiled, model))
