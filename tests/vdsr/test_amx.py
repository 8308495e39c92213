"""Is the matrix unit used where this process may, and only where it computes what it should?

What it computes is tested in test_kernels.py, like everything that is not fp32.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from kernels import built_for_tests, noise, residual

from vdsr import Upscaler, checkpoint, device, native
from vdsr.device import DeviceError
from vdsr.model import VDSR
from vdsr.native import Library, Network, amx
from vdsr.native.trial import can_be_trusted


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The emulation in the place of a matrix unit."""
    emulated = built_for_tests("amx_emulated", "bf16")
    monkeypatch.setattr("vdsr.native.amx.library", lambda: emulated)
    return emulated


@pytest.fixture(scope="module")
def model() -> VDSR:
    return checkpoint.load()[0]


def test_the_emulation_gives_the_bits_of_the_unit(model: VDSR) -> None:
    emulated, real = built_for_tests("amx_emulated", "bf16"), amx.library()
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

    assert can_be_trusted(Network(here, silent), Network(compiled, silent))


CPUINFO = "model name : some\nflags : sse avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8\n"


@pytest.mark.parametrize("missing", ["amx_tile", "amx_bf16", "avx512_bf16"])
def test_without_one_of_the_flags_the_library_is_not_even_loaded(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: CPUINFO)
    assert device.cpu_has_amx()
    monkeypatch.setattr("vdsr.device._cpuinfo", lambda: CPUINFO.replace(missing, ""))
    monkeypatch.setattr("vdsr.native.amx.built", lambda *_, **__: pytest.fail("it was loaded"))

    assert amx.library.__wrapped__() is None


def test_without_the_systems_permission_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = built_for_tests("amx_emulated", "bf16")
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
