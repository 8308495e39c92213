"""Pictures made on a device from bytes to bytes: as the host makes them, whatever the pieces and the memory.

The code is the same on every device; here it runs on torch's CPU.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vdsr.on_card
import vdsr.samples
from vdsr import Upscaler
from vdsr.cuda import PICTURE_BYTES_A_PIXEL
from vdsr.data import image_paths
from vdsr.device import OutOfMemory
from vdsr.engine import Picturing, make_engine, whole
from vdsr.errors import CheckpointError, Interrupted
from vdsr.model import VDSR, VDSRConfig
from vdsr.picture_trial import can_be_trusted, trial_pictures
from vdsr.pillow import to_array
from vdsr.resize import plan_bicubic
from vdsr.schedule import Budget
from vdsr.torch_engine import CpuExecutor, TorchEngine

RNG = np.random.default_rng(11)
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CPU = torch.device("cpu")
DEPTH = 4
MODEL = VDSR(VDSRConfig(depth=DEPTH, channels=4))
DTYPES = [np.uint8, np.uint16]


def nothing() -> None:
    pass


def picture(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def exact_network(y: np.ndarray) -> np.ndarray:
    """Sees as far as the network and its borders, in whole numbers: a pixel has the same bits in every tile."""
    height, width = y.shape
    plane = np.round(y * 4095)
    for _ in range(DEPTH):
        padded = np.pad(plane, 1)
        shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        plane = (sum(k * part for k, part in enumerate(shifted, 1)) + 1) % 251  # a pixel outside would not be zero
    return ((plane - 125) / 1000).astype(np.float32)


class Device(CpuExecutor):
    """With a card's habits, a network that is exact, and as much memory for each stage as a test gives it."""

    depth = 2

    def __init__(self, tile: int = 100, pixels: int = 10**6) -> None:
        super().__init__(MODEL.kernels, torch.float32)
        self._budget = Budget(tile, pixels, DEPTH)
        self.memory: dict[str, int] = {}
        self.failed = self.relieved = self.taken = 0
        self.fail_at: set[int] = set()
        self.begun: list[tuple[int, ...]] = []
        self.uploads: list[np.ndarray] = []
        self.spoil: Callable[[torch.Tensor, bool], torch.Tensor] = lambda stack, exact: stack

    def take(self, stage: str, elements: int) -> None:
        self.taken += 1
        if elements > self.memory.get(stage, 10**9) or self.taken in self.fail_at:
            self.failed += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def budget(self, tile: int, halo: int) -> Budget:
        return self._budget

    def begin_there(self, planes: Sequence[torch.Tensor], *, exact: bool) -> Callable[[], list[torch.Tensor | None]]:
        stack = torch.stack(list(planes))  # RuntimeError where they differ
        self.take("network", stack.numel())
        self.take("beside the areas", max(plane.untyped_storage().nbytes() // 4 for plane in planes))
        self.begun.append(tuple(stack.shape))
        residuals = self.spoil(torch.stack([torch.from_numpy(exact_network(y.numpy())) for y in stack]), exact)
        return lambda: [plane if torch.isfinite(plane).all() else None for plane in residuals]

    def upload(self, samples: np.ndarray) -> torch.Tensor:
        self.take("upload", samples.size)
        if samples.ndim == 3:  # not taps
            self.uploads.append(samples)
        return super().upload(samples)

    def download(self, codes: torch.Tensor) -> Callable[[], np.ndarray]:
        self.take("download", codes.numel())
        return super().download(codes)

    def relieve(self) -> None:
        self.relieved += 1


def on(device: Device, dtype: torch.dtype = torch.bfloat16) -> TorchEngine:
    return TorchEngine(MODEL, CPU, dtype, 0, executor=device)


def made(engine: TorchEngine, image: np.ndarray, scale: float = 2, on_tile: Callable[[], None] = nothing) -> np.ndarray:
    plan = plan_bicubic(image.shape[:2], scale=scale)
    out = np.full((*plan.size, image.shape[2]), 77, image.dtype)
    engine.pictures([image], plan, [out], on_tile)
    return out


def in_one_piece(image: np.ndarray, scale: float = 2) -> np.ndarray:
    device = Device(tile=10**5, pixels=10**9)
    result = made(on(device), image, scale)
    assert len(device.begun) == 1
    return result


@pytest.fixture(scope="module")
def upscaler() -> Iterator[Upscaler]:
    """Of a small network, in tiles of 32 pixels."""
    torch.manual_seed(5)
    upscaler = Upscaler(device="cpu", engine="torch")
    model = VDSR(VDSRConfig(depth=DEPTH, channels=8))
    with torch.no_grad():
        model.kernels[-1].mul_(0.1)
    upscaler.engine = TorchEngine(model, CPU, torch.float32, 32)
    yield upscaler
    upscaler.engine.makes_pictures = False


def both_ways(upscaler: Upscaler, image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """By the host, and on the device."""
    engine, results = upscaler.engine, []
    assert isinstance(engine, Picturing)
    for engine.makes_pictures in (False, True):
        results.append(upscaler.upscale(image, scale))
    host, there = results
    assert (there.shape, there.dtype) == (host.shape, host.dtype)
    return host, there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 1.5, 2, 2.37, 4])
def test_a_device_makes_what_the_host_makes(upscaler: Upscaler, scale: float, channels: int, dtype: type) -> None:
    # float32 leaves both ways some thousandths of a code value of 16 bits, and so as many samples beside a rounding
    most = 0.001 if dtype == np.uint8 else 0.02

    for size in [(1, 1), (1, 57), (57, 1), (131, 77)]:
        image = picture(*size, channels, dtype=dtype)
        host, there = both_ways(upscaler, image if channels == 3 else image[..., 0], scale)
        differ = np.abs(host.astype(np.int64) - there)
        assert differ.max() <= 1
    assert np.mean(differ > 0) < most


def test_photographs_come_out_as_by_the_host_with_the_weights_that_ship() -> None:
    upscaler = Upscaler(device="cpu", engine="torch", precision="fp32")
    photo = to_array(Image.open(image_paths(PHOTOS)[0]).convert("RGB"))[:96, :80]

    host, there = both_ways(upscaler, photo, 3)

    assert np.abs(host.astype(int) - there).max() <= 1
    assert np.mean(host != there) < 0.001


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 31, 2), (40, 31, 4)])
def test_pictures_with_alpha_are_made_on_the_device_too(
    upscaler: Upscaler, shape: tuple[int, ...], dtype: type
) -> None:
    image = picture(*shape, dtype=dtype)
    image[:9, :9, -1] = 0

    host, there = both_ways(upscaler, image, 2)

    assert np.abs(host.astype(np.int64) - there).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 2.37])
def test_gray_in_colour_stays_exactly_gray(dtype: type, scale: float) -> None:
    gray = picture(60, 71, 1, dtype=dtype)

    colored, alone = made(on(Device(tile=24)), gray.repeat(3, axis=2), scale), made(on(Device(tile=24)), gray, scale)

    assert np.array_equal(colored, alone.repeat(3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 2, 2.37])
@pytest.mark.parametrize(("tile", "pixels"), [(7, 0), (16, 5000), (33, 10**6), (64, 9000)])
def test_areas_give_the_bits_of_the_whole(tile: int, pixels: int, scale: float, channels: int) -> None:
    device, image = Device(tile, pixels), picture(70, 90, channels, dtype=np.uint16)

    result = made(on(device), image, scale)

    assert np.array_equal(result, in_one_piece(image, scale))
    assert sum(n for n, _, _ in device.begun) > 1
    assert all(n == 1 or n * h * w <= pixels for n, h, w in device.begun)


def test_what_does_not_lie_in_one_piece_is_read_and_written_where_it_lies() -> None:
    whole_image, plan = picture(50, 60, 4, dtype=np.uint16), plan_bicubic((50, 60), scale=2)
    image = np.moveaxis(whole_image, 0, 1)[::-1, :, :3]
    image.flags.writeable = False
    plan = plan_bicubic(image.shape[:2], scale=2)
    out = np.zeros((*plan.size, 4), np.uint16)

    on(Device(tile=24)).pictures([image], plan, [out[..., :3]], nothing)

    assert np.array_equal(out[..., :3], in_one_piece(np.ascontiguousarray(image)))
    assert not out[..., 3].any()


def test_an_area_takes_only_the_rows_and_columns_that_it_is_made_of() -> None:
    device, image = Device(tile=40, pixels=0), picture(200, 300, 3)

    made(on(device), image)

    longest = (40 + 2 * DEPTH) // 2 + 4  # of the source at half the size, and what bicubic reaches beyond
    assert len(device.uploads) > 100
    assert max(max(samples.shape[:2]) for samples in device.uploads) <= longest


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage.data_ptr() not in self._sizes:
                self._sizes[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage.data_ptr())
                self.peak = max(self.peak, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1, 2])
def test_memory_is_that_of_the_areas_under_way_and_not_of_the_picture(scale: int, dtype: type) -> None:
    peaks = []

    for height in (900, 2700):
        device = Device(tile=100, pixels=6 * 108 * 108)
        with Live() as live:
            made(on(device), np.zeros((height // scale, 600 // scale, 3), dtype), scale)
        peaks.append(live.peak)

    area = 600 * 108
    assert len(device.begun) == 27
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < PICTURE_BYTES_A_PIXEL * area
    assert peaks[0] > 20 * area  # as long as it counts at all


STAGES = {
    "upload": 2400,
    "enlarging": 3000,
    "network": 3000,
    "beside the areas": 3000,
    "coloring": 2000,
    "download": 6000,
}
"""Elements that there is memory for: some tiles' worth."""


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], TorchEngine]:
    """Engines whose device's memory counts in the arithmetic, too."""
    applied, packed = vdsr.samples.Axis.applied, vdsr.on_card.packed

    def limit(device: Device) -> TorchEngine:
        def applied_if_it_fits(self: Any, planes: torch.Tensor, start: int, stop: int, **where: Any) -> torch.Tensor:
            device.take("enlarging", (stop - start) * planes.shape[1 if where["across"] else 2])
            return applied(self, planes, start, stop, **where)

        def packed_if_it_fits(y: torch.Tensor, chroma: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            result = packed(y, chroma, dtype)  # y has been overwritten when memory runs out
            device.take("coloring", y.numel())
            return result

        monkeypatch.setattr(vdsr.samples.Axis, "applied", applied_if_it_fits)
        monkeypatch.setattr(vdsr.on_card, "packed", packed_if_it_fits)
        return on(device)

    return limit


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("tile", [100, 33])
def test_less_memory_at_any_stage_gives_the_same_with_less_at_a_time(
    stage: str, tile: int, limited: Callable[[Device], TorchEngine], caplog: pytest.LogCaptureFixture
) -> None:
    image = picture(80, 90, 3)
    expected = in_one_piece(image)
    device = Device(tile=tile)
    device.memory[stage] = STAGES[stage]
    engine = limited(device)

    with caplog.at_level(logging.WARNING):
        result = made(engine, image)

    assert np.array_equal(result, expected)
    assert device.failed > 0
    assert device.relieved > 0
    assert engine.relieved == device.failed
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 1
    device.failed = 0
    assert np.array_equal(made(engine, image), expected)
    assert device.failed == 0  # it stays with that


@pytest.mark.parametrize("stage", STAGES)
def test_where_nothing_fits_at_some_stage_the_error_has_the_remedy_and_the_next_picture_is_sound(
    stage: str, limited: Callable[[Device], TorchEngine]
) -> None:
    device, image = Device(), picture(80, 90, 3)
    device.memory[stage] = 0
    engine = limited(device)

    with pytest.raises(OutOfMemory, match=r"cpu has too little free memory even for a tile of .* VDSR_DEVICE"):
        made(engine, image)
    device.memory.clear()

    assert np.array_equal(made(engine, image), in_one_piece(image))


def test_memory_that_runs_out_at_any_moment_changes_no_byte(limited: Callable[[Device], TorchEngine]) -> None:
    images, plan = [picture(45, 50, 3) for _ in range(2)], plan_bicubic((45, 50), scale=2)
    expected = [in_one_piece(image) for image in images]
    moments = 1

    while True:
        device = Device(tile=60, pixels=15_000)
        device.fail_at = {moments, moments + 3}  # once more while the first is being mended
        outs = [np.full((90, 100, 3), 77, np.uint8) for _ in images]
        limited(device).pictures(images, plan, outs, nothing)
        assert all(np.array_equal(out, wanted) for out, wanted in zip(outs, expected, strict=True))
        if not device.failed:
            break
        moments += 1

    assert moments > 30


def test_areas_that_wait_are_cut_before_they_fail_too(limited: Callable[[Device], TorchEngine]) -> None:
    device, image = Device(tile=100, pixels=0), picture(500, 500, 1)
    expected = in_one_piece(image)
    device.memory["coloring"] = 5000
    engine = limited(device)

    result = made(engine, image)

    assert np.array_equal(result, expected)
    assert device.failed <= 4  # those that had been begun with the first of a hundred
    assert engine.tile == 50


def test_where_areas_leave_no_room_for_a_tile_all_is_given_up_before_they_are_made_again() -> None:
    device, image = Device(tile=100, pixels=0), picture(120, 130, 3)
    device.memory["beside the areas"] = 5000
    engine, left = on(device), []
    device.relieve = lambda: left.append(len(engine._under_way))  # type: ignore[method-assign]
    begin, shrunk = device.begin_there, []

    def begin_there(planes: Sequence[torch.Tensor], *, exact: bool) -> Callable[[], list[torch.Tensor | None]]:
        if not shrunk and len(device.begun) == 0:
            device.memory.pop("beside the areas")
            result = begin(planes, exact=exact)
            device.memory["beside the areas"] = 5000
            shrunk.append(1)
            return result
        return begin(planes, exact=exact)

    device.begin_there = begin_there  # type: ignore[method-assign]

    assert np.array_equal(made(engine, image), in_one_piece(image))
    assert left[-1] == 0
    assert max(left) == 1  # the first stack, while its neighbour was still tried in smaller tiles


def test_other_errors_of_a_device_rise_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on(Device())

    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("vdsr.on_card.packed", broken)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        made(engine, picture(20, 20, 3))
    assert engine.relieved == 0


def test_tiles_that_are_not_finite_in_bf16_are_computed_again_in_fp32() -> None:
    device, image = Device(tile=16, pixels=3000), picture(60, 70, 3)
    engine = on(device)

    def spoil(stack: torch.Tensor, exact: bool) -> torch.Tensor:
        if not exact:
            stack[::2, 3, 4] = torch.nan
        return stack

    device.spoil = spoil

    assert np.array_equal(made(engine, image), in_one_piece(image))
    assert 0 < engine.redone < sum(n for n, _, _ in device.begun)


def test_memory_that_runs_out_for_tiles_that_are_redone_gives_the_same() -> None:
    device, image = Device(tile=60), picture(80, 90, 3)
    engine = on(device)

    def spoil(stack: torch.Tensor, exact: bool) -> torch.Tensor:
        if not exact:
            stack[:, 3, 4] = torch.inf
            return stack
        device.take("exact", stack.numel())
        return stack

    device.spoil = spoil
    device.memory["exact"] = 2500

    assert np.array_equal(made(engine, image), in_one_piece(image))
    assert engine.relieved == device.failed > 0


def test_what_is_not_finite_in_fp32_either_is_the_fault_of_the_weights() -> None:
    device = Device()
    device.spoil = lambda stack, exact: stack * torch.nan

    with pytest.raises(CheckpointError, match="its weights are broken; use another checkpoint"):
        made(on(device), picture(20, 20, 1))


def test_a_picture_that_was_stopped_leaves_nothing_behind_and_the_next_is_sound() -> None:
    device, calls = Device(tile=16, pixels=0), []
    engine, image = on(device), picture(50, 60, 3)
    kept: list[weakref.ref[torch.Tensor]] = []
    begin = device.begin_there

    def begin_there(planes: Sequence[torch.Tensor], *, exact: bool) -> Callable[[], list[torch.Tensor | None]]:
        kept.extend(weakref.ref(plane) for plane in planes)
        return begin(planes, exact=exact)

    device.begin_there = begin_there  # type: ignore[method-assign]

    def stop_at_seventh() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise Interrupted

    with pytest.raises(Interrupted):
        made(engine, picture(90, 90, 3), on_tile=stop_at_seventh)
    gc.collect()

    assert len(kept) == 6
    assert [ref() for ref in kept] == [None] * 6
    assert np.array_equal(made(engine, image), in_one_piece(image))


def test_a_picture_takes_nothing_of_a_stream_along() -> None:
    engine = TorchEngine(MODEL, CPU, torch.float32, 16)
    image, y = picture(30, 40, 3), RNG.random((64, 40)).astype(np.float32)
    expected, alone = whole(engine, y, nothing), made(engine, image)
    stream = engine.stream(64, 40, nothing)
    begun = stream.push(y[:40])

    result = made(engine, image)

    assert np.array_equal(result, alone)
    assert np.array_equal(np.concatenate([begun, stream.push(y[40:])]), expected)


def test_small_pictures_of_one_shape_share_stacks() -> None:
    device = Device(pixels=8 * 60 * 80)
    images, plan = [picture(30, 40, 3) for _ in range(20)], plan_bicubic((30, 40), scale=2)
    outs = [np.zeros((60, 80, 3), np.uint8) for _ in images]

    on(device).pictures(images, plan, outs, nothing)

    assert device.begun == [(8, 60, 80), (8, 60, 80), (4, 60, 80)]
    assert all(np.array_equal(out, in_one_piece(image)) for out, image in zip(outs, images, strict=True))


def test_the_device_s_work_counts_as_the_network_s(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler.engine.makes_pictures = True
    clock = iter([100.0, 107.5])
    monkeypatch.setattr("vdsr.upscale.time.perf_counter", lambda: next(clock))
    before = upscaler.network_s

    upscaler.upscale(picture(20, 20))

    assert upscaler.network_s - before == 7.5


def test_the_mean_over_eight_orientations_is_made_by_the_host(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler.engine.makes_pictures = True
    monkeypatch.setattr(upscaler, "self_ensemble", True)
    monkeypatch.setattr(upscaler.engine, "pictures", None)

    assert upscaler.upscale(picture(8, 9)).shape == (16, 18)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_gray_value_survives_the_way_there_and_back(dtype: type) -> None:
    codes = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1, 1)

    there = torch.from_numpy(vdsr.samples.carried(codes))
    back = vdsr.samples.packed(vdsr.samples.unpacked(there)[0], torch.empty(0, *codes.shape[:2]), there.dtype)

    assert np.array_equal(back.numpy().view(dtype), codes)


def test_luminance_is_of_studio_range_and_primaries_come_back() -> None:
    colors = np.array([[[0, 0, 0], [65535] * 3, [65535, 0, 0], [0, 65535, 0], [0, 0, 65535]]], np.uint16)
    there = torch.from_numpy(vdsr.samples.carried(colors))

    ycbcr = vdsr.samples.unpacked(there)

    expected = [[16, 235, 81.481, 144.553, 40.966], [0, 0, -37.797, -74.203, 112], [0, 0, 112, -93.786, -18.214]]
    np.testing.assert_allclose(ycbcr[:, 0].numpy() * 255, expected, atol=1e-4)
    assert not ycbcr[1:, :, :2].any()
    back = vdsr.samples.packed(ycbcr[0].clone(), ycbcr[1:], torch.int16)
    assert np.array_equal(back.numpy().view(np.uint16), colors)


@pytest.mark.parametrize(("dtype", "code"), [(np.uint8, 255), (np.uint16, 65535)])
def test_what_overshoots_is_clamped(dtype: type, code: int) -> None:
    there = torch.uint8 if dtype == np.uint8 else torch.int16

    codes = vdsr.samples.packed(torch.tensor([[-3.0, 3.0]]), torch.empty(0, 1, 2), there)

    assert codes.numpy().view(dtype).ravel().tolist() == [0, code]


def small_engine() -> TorchEngine:
    return TorchEngine(MODEL, CPU, torch.float32, 0)


def test_an_engine_that_makes_pictures_right_is_trusted_and_keeps_its_budget_and_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = small_engine()
    before = (engine.budget, Budget(256, 0, DEPTH), 0, 0)

    assert can_be_trusted(engine)
    assert (engine.budget, engine.budget, engine.redone, engine.relieved) == before
    assert not caplog.records


def test_trial_pictures_need_every_bit_and_several_areas() -> None:
    colored, gray = trial_pictures()

    assert (colored.dtype, colored.shape[2], gray.dtype, gray.shape[2]) == (np.uint8, 3, np.uint16, 1)
    assert (colored.min(), colored.max(), gray.min(), gray.max()) == (0, 255, 0, 65535)
    assert 0.2 < np.mean(gray > 32767) < 0.8


def bgr(result: torch.Tensor) -> torch.Tensor:
    return result.flip(2)


def two_brighter(result: torch.Tensor) -> torch.Tensor:
    return (result.float() + 2).clamp_(max=255).to(torch.uint8) if result.dtype == torch.uint8 else result


def without_the_sign(result: torch.Tensor) -> torch.Tensor:
    return result.clamp(min=0) if result.dtype == torch.int16 else result


def one_column_aside(result: torch.Tensor) -> torch.Tensor:
    return result.roll(1, dims=1)


def of_the_area_before(result: torch.Tensor, seen: list[torch.Tensor] = []) -> torch.Tensor:  # noqa: B006
    seen.append(result)
    before = seen[-2] if len(seen) > 1 else result
    return before if before.shape == result.shape and before.dtype == result.dtype else result


@pytest.mark.parametrize("spoilt", [bgr, two_brighter, without_the_sign, one_column_aside, of_the_area_before])
def test_a_device_that_spoils_pictures_is_noticed(
    spoilt: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed = vdsr.on_card.packed
    monkeypatch.setattr(vdsr.on_card, "packed", lambda *given: spoilt(packed(*given)))

    assert not can_be_trusted(small_engine())
    (record,) = caplog.records
    assert "bicubic and colour are computed on the host instead" in record.message


@pytest.mark.parametrize("error", [RuntimeError("no remainder of floats here"), OutOfMemory("cuda", 72)])
def test_a_device_that_cannot_is_noticed(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = small_engine()

    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("vdsr.on_card.unpacked", broken)

    assert not can_be_trusted(engine)
    assert [record.message for record in caplog.records] == [
        f"on cpu a trial picture failed: {error}; bicubic and colour are computed on the host instead"
    ]
    assert engine.budget == Budget(256, 0, DEPTH)


@pytest.mark.parametrize("sound", [True, False])
def test_an_engine_on_a_card_has_its_trial_when_it_is_made(sound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdsr.engine.choose_dtype", lambda precision, device: torch.float32)
    monkeypatch.setattr("vdsr.torch_engine.make_executor", lambda kernels, device, dtype: CpuExecutor(kernels, dtype))
    if not sound:
        monkeypatch.setattr("vdsr.on_card.unpacked", lambda codes: torch.zeros(codes.shape[2], *codes.shape[:2]))

    engine = make_engine(MODEL, torch.device("cuda"), "fp32", 0)

    assert isinstance(engine, Picturing)
    assert engine.makes_pictures == sound


def test_on_a_cpu_the_host_makes_the_pictures() -> None:
    engine = make_engine(MODEL, CPU, "fp32", 0, "torch")

    assert isinstance(engine, Picturing)
    assert not engine.makes_pictures
