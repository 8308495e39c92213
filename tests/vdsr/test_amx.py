"""Does the kernel for matrix units compute what fp32 does, the same to the bit in any pieces, and only where it may?

Where the processor has no matrix unit, its instructions are emulated and everything else is tested.
"""

from __future__ import annotations

import ctypes
import os
import platform

import numpy as np
import pytest
import torch

from vdsr import Upscaler, checkpoint, device, native
from vdsr.device import DeviceError
from vdsr.model import VDSR, VDSRConfig
from vdsr.native import Library, Network, amx

RNG = np.random.default_rng(5)
SIZES = [(1, 1), (1, 150), (150, 1), (41, 41), (33, 107)]


def emulation() -> Library:
    found = native.built("amx_emulated", precision="bf16")
    if found is None or native.library() is None:
        if os.environ.get("CI") and platform.machine() == "x86_64":
            pytest.fail("no compiled code was built; is there a C++ compiler?")
        pytest.skip("there is no compiled code")
    return found


@pytest.fixture(params=["emulated", "real"])
def library(request: pytest.FixtureRequest) -> Library:
    emulated = emulation()
    if request.param == "emulated":
        return emulated
    return amx.library() or pytest.skip("this processor has no AMX, or this process may not use it")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The emulation in the place of a matrix unit."""
    emulated = emulation()
    monkeypatch.setattr("vdsr.native.amx.library", lambda: emulated)
    return emulated


@pytest.fixture(scope="module")
def model() -> VDSR:
    return checkpoint.load()[0]


def noise(*size: int) -> np.ndarray:
    return RNG.random(size, np.float32)


def residual(library: Library, model: VDSR, y: np.ndarray, *, rows: int = 10_000, threads: int = 1) -> np.ndarray:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    stream = Network(library, model).stream(*y.shape)
    parts = [stream.push(y[start : start + rows]) for start in range(0, len(y), rows)]
    torch.set_num_threads(before)
    return np.concatenate(parts)


def exact(model: VDSR, y: np.ndarray) -> np.ndarray:
    compiled = native.library()
    assert compiled is not None
    return residual(compiled, model, y)


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

    assert np.abs(difference).max() < 0.02 * np.abs(wanted).max()
    assert np.sqrt(np.square(difference).mean()) < 0.02 * np.sqrt(np.square(wanted).mean())


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 8])
def test_a_network_may_have_another_depth(library: Library, depth: int) -> None:
    torch.manual_seed(depth)
    model, y = VDSR(VDSRConfig(depth=depth)), noise(45, 130)

    got, wanted = residual(library, model, y, rows=9, threads=2), exact(model, y)

    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()


def test_many_bands_and_patches_give_what_a_strip_of_them_gives(library: Library) -> None:
    torch.manual_seed(0)
    model, y = VDSR(VDSRConfig(depth=4)), noise(700, 420)  # more bands than are awaited together

    whole = residual(library, model, y, rows=50, threads=3)

    assert np.array_equal(residual(library, model, y[:, 150:301])[:, 4:-4], whole[:, 154:297])
    assert np.array_equal(residual(library, model, y[333:400])[4:-4], whole[337:396])
    assert np.abs(whole - exact(model, y)).max() < 0.02 * np.abs(whole).max()


def test_a_second_image_does_not_see_the_first(library: Library, model: VDSR) -> None:
    network, y = Network(library, model), noise(30, 40)

    first, _, second = (network.stream(30, 40).push(image) for image in (y, 1 - y, y))

    assert np.array_equal(first, second)


def test_the_emulation_gives_the_bits_of_the_unit(model: VDSR) -> None:
    emulated, real = emulation(), amx.library()
    if real is None:
        pytest.skip("this processor has no AMX, or this process may not use it")
    y = noise(60, 200)

    assert np.array_equal(residual(real, model, y), residual(emulated, model, y))


@pytest.mark.parametrize(("strip", "band"), [(60, 1), (64, 7), (4096, 1000)])
def test_the_upscaler_gives_the_same_bits_in_any_pieces(
    strip: int, band: int, here: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler, y = Upscaler(device="cpu"), noise(50, 133)
    expected = upscaler.sharpen(y)

    monkeypatch.setattr("vdsr.upscale.STRIP", strip)
    monkeypatch.setattr("vdsr.upscale.BAND_PIXELS", 1)
    monkeypatch.setattr("vdsr.upscale.BLOCK", band)  # the least

    assert np.array_equal(upscaler.sharpen(y), expected)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_where_there_is_amx_it_is_taken(here: Library, precision: str) -> None:
    engine = Upscaler(device="cpu", precision=precision).engine

    assert (engine.name, engine.exact, engine.halo) == ("native amx_emulated bf16", False, 20)


def test_fp32_is_fp32_everywhere(here: Library) -> None:
    engine = Upscaler(device="cpu", precision="fp32").engine

    assert engine.exact
    assert engine.name.endswith("fp32")


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_unit_that_computes_something_else_is_not_used(
    precision: str, here: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(here.functions, "vdsr_stream_push", broken(here.functions.vdsr_stream_push))

    engine = Upscaler(device="cpu", precision=precision).engine

    assert engine.exact
    assert "amx_emulated is off by" in caplog.text
    assert "fp32 is computed instead" in caplog.text


def broken(push: ctypes._CFuncPtr) -> object:
    """A push after which one value in fifty is no number."""

    def pushed(stream: object, rows: object, count: object, out: ctypes.c_void_p, threads: int) -> int:
        given: int = push(stream, rows, count, out, threads)
        values = (ctypes.c_float * (given * 100)).from_address(out.value or 0)
        values[::50] = [float("nan")] * len(values[::50])
        return given

    return pushed


def test_a_network_that_adds_nothing_passes_the_trial(here: Library, model: VDSR) -> None:
    silent = VDSR()
    silent.load_state_dict(model.state_dict())
    with torch.no_grad():
        silent.kernels[-1].zero_()
    compiled = native.library()
    assert compiled is not None

    assert amx.can_be_trusted(Network(here, silent), Network(compiled, silent))


CPUINFO = "model name : some\nflags : sse avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n"


@pytest.mark.parametrize("missing", ["amx_tile", "amx_bf16", "avx512_bf16"])
def test_without_one_of_the_flags_the_library_is_not_even_loaded(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: CPUINFO)
    assert device.cpu_has_amx()
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: CPUINFO.replace(missing, ""))
    monkeypatch.setattr("vdsr.native.amx.built", lambda *_, **__: pytest.fail("it was loaded"))

    assert amx.library.__wrapped__() is None


def test_without_the_systems_permission_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = emulation()
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: CPUINFO)
    monkeypatch.setattr("vdsr.native.amx.built", lambda *_, **__: emulated)
    assert amx.library.__wrapped__() is emulated

    monkeypatch.setattr(emulated.functions, "vdsr_amx_permitted", lambda: 0)

    assert amx.library.__wrapped__() is None


def test_where_the_processor_has_none_the_real_library_says_so() -> None:
    if device.cpu_has_amx():
        pytest.skip("this processor has AMX")
    if "avx512_bf16" not in device._cpuinfo():
        pytest.skip("this processor could not run the library at all")
    real = native.built("amx", precision="bf16")
    if real is None:
        pytest.skip("it was not built")

    assert real.functions.vdsr_amx_permitted() == 0


@pytest.mark.skipif(device.cpu_has_amx(), reason="this processor has AMX")
def test_bf16_by_our_code_is_refused_where_there_is_no_amx() -> None:
    with pytest.raises(DeviceError, match="bf16 only on those with AMX"):
        Upscaler(device="cpu", precision="bf16", engine="native")
