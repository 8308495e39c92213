"""Does the compiled code compute what torch does, on every kind of processor that this one can be?"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdsr import Upscaler, checkpoint, native
from vdsr.errors import CheckpointError
from vdsr.model import VDSR, VDSRConfig
from vdsr.native import Network
from vdsr.native_engine import NativeEngine
from vdsr.training.native import NativeVDSR

SIZES = [(1, 1), (1, 23), (23, 1), (4, 4), (5, 3), (41, 41), (30, 101)]


@pytest.fixture(scope="module", params=["avx512", "avx2", "generic"])
def library(request: pytest.FixtureRequest) -> native.Library:
    for library in native.libraries():
        if library.variant == request.param:
            return library
    if os.environ.get("CI") and not native.libraries():
        pytest.fail("no compiled code was built; is there a C++ compiler?")
    return pytest.skip(f"{request.param} was not built, or is not for this processor")


@pytest.fixture(scope="module")
def model() -> VDSR:
    torch.manual_seed(1)
    return VDSR()


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).random(shape, np.float32))


def flat(model: VDSR) -> Tensor:
    return torch.cat([kernel.detach().flatten() for kernel in model.kernels])


def gradients(network: Any, model: VDSR, y: Tensor) -> list[Tensor]:
    model.zero_grad()
    network(y).square().sum().backward()
    return [kernel.grad.clone() for kernel in model.kernels if kernel.grad is not None]


def in_float64(model: VDSR) -> VDSR:
    exact = VDSR().double()
    exact.load_state_dict(model.state_dict())
    return exact


def relative(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("size", SIZES)
def test_the_residual_and_the_gradients_are_those_of_float64(
    library: native.Library, model: VDSR, size: tuple[int, int]
) -> None:
    y = noise(2, 1, *size)
    ours, exact = NativeVDSR(model, library), in_float64(model)

    assert relative(ours(y).detach(), exact(y.double()).detach()) < 1e-5
    pairs = zip(gradients(ours, model, y), gradients(exact, exact, y.double()), strict=True)
    # A ReLU whose input is nearly zero may fall on either side, which moves a gradient by a thousandth.
    assert max(relative(got, true) for got, true in pairs) < 5e-3


def test_what_is_multiplied_by_channels_that_are_zero_changes_no_bit(library: native.Library, model: VDSR) -> None:
    y = noise(61, 85).numpy()
    found = []
    for factor in (1, -7):
        other = VDSR()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.kernels[3][8:60].abs_().neg_()  # what they read is positive
            other.kernels[4][:, 8:60] *= factor
        found.append(Network(library, other).stream(61, 85).push(y))

    assert np.array_equal(*found)
    assert found[0].any()


def test_the_number_of_threads_changes_no_bit(library: native.Library, model: VDSR) -> None:
    y, weights = noise(5, 1, 19, 22), flat(model)
    activations = torch.full((5 * library.activations(20, 19, 22),), torch.nan)

    found = [
        (
            library.forward(weights, 20, y, activations, threads=threads),
            library.backward(weights, 20, y, y, activations, threads=threads),
        )
        for threads in (1, 2, 3)
    ]

    assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(found[0], pair, strict=True))


def test_two_passes_before_a_way_back_do_not_share_activations(library: native.Library, model: VDSR) -> None:
    ours = NativeVDSR(model, library)
    first, second = noise(1, 1, 9, 9), 1 - noise(1, 1, 9, 9)
    alone = gradients(ours, model, first)

    model.zero_grad()
    loss = ours(first).square().sum()
    ours(second)
    loss.backward()

    assert all(torch.equal(kernel.grad, was) for kernel, was in zip(model.kernels, alone, strict=True))


def test_what_is_not_contiguous_float32_is_refused(library: native.Library, model: VDSR) -> None:
    with pytest.raises(ValueError, match=r"contiguous float32, not torch\.float64"):
        library.forward(flat(model), 20, noise(1, 1, 8, 8).double(), torch.empty(0), threads=1)


def test_a_network_of_other_channels_is_left_to_torch(library: native.Library) -> None:
    torch.manual_seed(0)
    model = VDSR(VDSRConfig(depth=4, channels=16))
    y = np.random.default_rng(0).random((20, 30), np.float32)

    upscaler = Upscaler(checkpoint.to_bytes(model, version="narrow"), device="cpu", precision="fp32")

    assert upscaler.engine.name == "torch cpu fp32"
    with torch.no_grad():
        expected = model(torch.from_numpy(y)[None, None])[0, 0].numpy()
    assert np.abs(upscaler.sharpen(y) - expected).max() < 1e-5
    with pytest.raises(ValueError, match="64 channels, not 16"):
        Network(library, model)


def test_broken_weights_end_the_work(library: native.Library) -> None:
    model, _ = checkpoint.load()
    with torch.no_grad():
        for kernel in model.kernels:
            kernel.mul_(300)

    with pytest.raises(CheckpointError, match="weights are broken"):
        NativeEngine(Network(library, model)).stream(9, 9, lambda: None).push(np.ones((9, 9), np.float32))


def test_luminance_that_is_no_number_is_named_as_such(library: native.Library) -> None:
    model, _ = checkpoint.load()

    with pytest.raises(ValueError, match="luminance"):
        NativeEngine(Network(library, model)).stream(9, 9, lambda: None).push(np.full((9, 9), np.nan, np.float32))


@pytest.mark.parametrize("size", [(1, 1), (41, 30), (128, 128)])
def test_small_images_that_are_computed_together_give_the_bits_of_each(
    library: native.Library, model: VDSR, size: tuple[int, int]
) -> None:
    engine, planes = NativeEngine(Network(library, model)), noise(5, *size).numpy()
    alone = [engine.stream(*size, lambda: None).push(plane) for plane in planes]

    assert np.array_equal(engine.residuals(planes, lambda: None), np.stack(alone))
    mirrored = planes[:, :, ::-1]  # not contiguous
    assert np.array_equal(engine.residuals(mirrored, lambda: None)[0], engine.residuals(mirrored[:1], lambda: None)[0])


def test_many_small_images_can_be_stopped_between(library: native.Library, model: VDSR) -> None:
    calls = []

    NativeEngine(Network(library, model)).residuals(noise(20, 128, 128).numpy(), lambda: calls.append(1))

    assert 2 <= len(calls) <= 20


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_no_number_is_named_as_such_among_others(
    library: native.Library, model: VDSR, value: float
) -> None:
    planes = noise(3, 9, 9).numpy()
    planes[1, 4, 4] = value

    with pytest.raises(ValueError, match="luminance"):
        NativeEngine(Network(library, model)).residuals(planes, lambda: None)


def test_what_is_no_stack_of_planes_is_refused(library: native.Library, model: VDSR) -> None:
    with pytest.raises(ValueError, match=r"float32 of \(9, 9\) was given; give float32 of \(N, H, W\)"):
        Network(library, model).residuals(noise(9, 9).numpy())


def test_more_bands_than_are_awaited_together_give_what_a_strip_of_them_gives(library: native.Library) -> None:
    torch.manual_seed(0)
    network, y = Network(library, VDSR(VDSRConfig(depth=4))), noise(700, 420).numpy()
    margin = 4 * network.tile

    whole = network.stream(*y.shape).push(y)
    strip = np.ascontiguousarray(y[:, 152:304])

    assert np.array_equal(
        network.stream(*strip.shape).push(strip)[:, margin:-margin], whole[:, 152 + margin : 304 - margin]
    )


def test_images_of_other_sizes_leave_nothing_behind(library: native.Library) -> None:
    network = Network(library, checkpoint.load()[0])
    planes = [np.random.default_rng(n).random((12, width), np.float32) for n, width in enumerate((50, 9, 300, 50, 7))]

    for plane in planes:
        fresh = Network(library, checkpoint.load()[0]).stream(*plane.shape).push(plane)
        assert np.array_equal(network.stream(*plane.shape).push(plane), fresh)
