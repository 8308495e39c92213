"""Tiles in stacks: the same result whatever the tile, the memory and the precision let happen."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vdsr import Upscaler, checkpoint
from vdsr.cuda import Recent, first_budget
from vdsr.device import OutOfMemory
from vdsr.engine import Engine, residuals, whole
from vdsr.errors import CheckpointError, Interrupted
from vdsr.layers import Layers, layer_dtypes
from vdsr.model import VDSR, VDSRConfig
from vdsr.schedule import Budget
from vdsr.tiling import equal_spans
from vdsr.torch_engine import CpuExecutor, TorchEngine

RNG = np.random.default_rng(5)
DEPTH = 4
MODEL = VDSR(VDSRConfig(depth=DEPTH, channels=4))
CPU = torch.device("cpu")


def nothing() -> None:
    pass


def layers_of_whole_numbers(plane: np.ndarray) -> np.ndarray:
    """What a network does with its borders, in arithmetic that is exact: equal means equal to the bit."""
    height, width = plane.shape
    for _ in range(DEPTH):
        padded = np.pad(plane, 1)
        shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        plane = (sum(k * part for k, part in enumerate(shifted, 1)) + 1) % 251  # a pixel outside would not be zero
    return plane.astype(np.float32)


class Card:
    """An executor with a card's habits: two buffers that it uses again, and as much memory as a test gives it."""

    depth = 2

    def __init__(self, pixels: int = 10**6, memory: int = 10**9, step: int = 1, error: Exception | None = None) -> None:
        self.pixels, self.memory, self.step = pixels, memory, step
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.spoil: Callable[[np.ndarray, bool], np.ndarray] = lambda stack, exact: stack
        self.begun: list[tuple[int, ...]] = []
        self.failed = self.relieved = 0
        self._buffers = [np.empty(10**6, np.float32) for _ in range(self.depth)]

    def budget(self, tile: int, halo: int) -> Budget:
        return Budget(tile or 100, self.pixels, halo, self.step)

    def begin(self, planes: Sequence[np.ndarray], *, exact: bool) -> Callable[[], np.ndarray]:
        stack = np.stack(planes)  # ValueError where they differ
        if stack.size > self.memory:
            self.failed += 1
            raise self.error
        self.begun.append(stack.shape)
        self._buffers.append(buffer := self._buffers.pop(0))
        residual = np.stack([layers_of_whole_numbers(plane) for plane in stack])
        buffer[: stack.size] = self.spoil(residual, exact).ravel()
        return lambda: buffer[: stack.size].reshape(stack.shape)

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def relieve(self) -> None:
        self.relieved += 1


def engine(card: Card, tile: int = 0, dtype: torch.dtype = torch.bfloat16) -> TorchEngine:
    return TorchEngine(MODEL, CPU, dtype, tile, executor=card)


def plane(*shape: int) -> np.ndarray:
    return RNG.integers(0, 251, shape).astype(np.float32)


@given(
    length=st.integers(1, 500),
    tile=st.integers(1, 120),
    halo=st.integers(0, 25),
    step=st.sampled_from([1, 8, 64]),
    data=st.data(),
)
def test_equal_spans_cover_an_axis_once_with_equal_reads(
    length: int, tile: int, halo: int, step: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))

    spans = equal_spans(start, stop, length=length, tile=tile, halo=halo, step=step)

    assert [span.start for span in spans] == [start, *[span.stop for span in spans[:-1]]]
    assert spans[-1].stop == stop
    assert len({span.read_stop - span.read_start for span in spans}) == 1
    assert spans[0].read_stop - spans[0].read_start <= tile + 2 * halo
    for span in spans:
        assert span.start < span.stop
        assert 0 <= span.read_start <= max(0, span.start - halo)
        assert min(length, span.stop + halo) <= span.read_stop <= length


def test_images_of_many_sizes_have_few_shapes_of_tiles() -> None:
    reads = {
        spans[0].read_stop - spans[0].read_start
        for length in range(1100, 4000)
        for spans in [equal_spans(0, length, length=length, tile=1048, halo=20, step=64)]
    }

    assert reads == {576, 640, 704, 768, 832, 896, 960, 1024, 1088}


@pytest.mark.parametrize("size", [(1, 1), (5, 90), (41, 41), (100, 73)])
@pytest.mark.parametrize(("tile", "step"), [(1, 1), (7, 1), (16, 8), (33, 16), (200, 64)])
@pytest.mark.parametrize("pixels", [0, 2000])
def test_stacks_of_tiles_give_the_bits_of_the_whole(size: tuple[int, int], tile: int, step: int, pixels: int) -> None:
    card, image = Card(pixels, step=step), plane(*size)

    result = whole(engine(card, tile), image, nothing)

    assert np.array_equal(result, layers_of_whole_numbers(image))
    assert all(n == 1 or n * h * w <= pixels for n, h, w in card.begun)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_rows_may_come_in_any_number(rows: int) -> None:
    image = plane(101, 50)
    stream = engine(Card(), tile=16).stream(*image.shape, nothing)

    result = np.concatenate([stream.push(image[start : start + rows]) for start in range(0, 101, rows)])

    assert np.array_equal(result, layers_of_whole_numbers(image))


def test_a_row_of_tiles_comes_out_while_the_next_is_under_way() -> None:
    image = plane(100, 50)
    stream = engine(Card(), tile=16).stream(*image.shape, nothing)

    given = [len(stream.push(image[start : start + 10])) for start in range(0, 100, 10)]

    assert given[0] == 0
    assert sum(bool(rows) for rows in given) >= 4
    assert sum(given) == 100


def test_stacks_of_an_image_are_of_even_size() -> None:
    card = Card(pixels=4 * 24 * 24)  # four tiles

    whole(engine(card, tile=16), plane(24, 8 + 5 * 16), nothing)

    assert card.begun == [(3, 24, 24), (2, 24, 24)]


@pytest.mark.parametrize("memory", [4000, 40 * 40 + 1, 80 * 80])
def test_too_little_memory_halves_the_stack_and_then_the_tile_for_good(
    memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    card, image = Card(memory=memory), plane(150, 170)
    eng = engine(card)

    with caplog.at_level(logging.WARNING):
        result = whole(eng, image, nothing)

    assert np.array_equal(result, layers_of_whole_numbers(image))
    assert card.failed == card.relieved > 0
    assert len([record for record in caplog.records if "out of memory" in record.message]) == 1
    assert eng.relieved > 0
    card.failed = 0
    assert np.array_equal(whole(eng, image, nothing), result)
    assert card.failed == 0


def test_the_stack_is_halved_before_the_tile_is() -> None:
    card = Card(pixels=8 * 24 * 24, memory=3 * 24 * 24)

    whole(eng := engine(card, tile=16), plane(24, 8 + 8 * 16), nothing)

    assert (card.failed, card.begun[0], eng.budget.tile) == (2, (2, 24, 24), 16)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_way_of_running_out_of_memory_is_known(error: Exception) -> None:
    card, image = Card(memory=5000, error=error), plane(90, 90)

    assert np.array_equal(whole(engine(card), image, nothing), layers_of_whole_numbers(image))


def test_where_not_even_a_small_tile_fits_the_error_has_the_remedy() -> None:
    card = Card(memory=100)

    with pytest.raises(
        OutOfMemory, match=r"cpu has too little free memory even for a tile of 35 x 35 pixels; .* VDSR_DEVICE"
    ):
        whole(engine(card), plane(150, 170), nothing)
    assert card.begun == []


def test_other_errors_of_a_device_rise_as_they_are() -> None:
    card = Card(memory=0, error=RuntimeError("CUDA error: an illegal memory access was encountered"))

    with pytest.raises(RuntimeError, match="illegal memory access"):
        whole(engine(card), plane(20, 20), nothing)
    assert card.failed == 1


def test_tiles_that_are_not_finite_in_bf16_are_computed_again_in_fp32() -> None:
    card, image = Card(pixels=3 * 24 * 24), plane(70, 90)
    eng = engine(card, tile=16)

    def spoil(stack: np.ndarray, exact: bool) -> np.ndarray:
        if not exact:
            stack[::2, 3, 4] = np.inf
        return stack

    card.spoil = spoil

    assert np.array_equal(whole(eng, image, nothing), layers_of_whole_numbers(image))
    assert 0 < eng.redone < sum(n for n, _, _ in card.begun)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_not_finite_in_fp32_either_is_the_fault_of_the_weights(dtype: torch.dtype) -> None:
    card = Card()
    card.spoil = lambda stack, exact: stack * np.float32("nan")

    with pytest.raises(CheckpointError, match="its weights are broken; use another checkpoint"):
        whole(engine(card, dtype=dtype), plane(20, 20), nothing)


def test_luminance_that_is_not_finite_is_not_blamed_on_the_weights() -> None:
    with pytest.raises(ValueError, match="luminance"):
        Upscaler(device="cpu", engine="torch").sharpen(np.full((8, 8), np.nan, np.float32))


def test_large_finite_residuals_are_not_taken_for_infinite_ones() -> None:
    card = Card()
    card.spoil = lambda stack, exact: np.full_like(stack, 3e38)

    assert (whole(eng := engine(card), plane(20, 20), nothing) == np.float32(3e38)).all()
    assert eng.redone == 0


def test_weights_that_overflow_in_half_precision_only_cost_time() -> None:
    model = VDSR()
    with torch.no_grad():
        model.kernels[0].mul_(1e6)  # beyond fp16, in which a card computes the first layers
        model.kernels[-1].mul_(1e-6)
    upscaler, y = Upscaler(device="cpu", engine="torch"), RNG.random((30, 30)).astype(np.float32)
    executor = CpuExecutor(model.kernels, torch.bfloat16)
    executor.layers = Layers(model.kernels, CPU, layer_dtypes(20, "cuda", torch.bfloat16))
    upscaler.engine = TorchEngine(model, CPU, torch.bfloat16, 0, executor=executor)

    result = upscaler.sharpen(y)

    assert np.isfinite(result).all()
    assert upscaler.redone == 1


def test_an_image_that_was_stopped_leaves_nothing_behind() -> None:
    eng, calls = engine(Card(pixels=0), tile=16), []

    def stop_at_fifth() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Interrupted

    stopped = plane(90, 90)
    kept = weakref.ref(stopped)
    with pytest.raises(Interrupted):
        whole(eng, stopped, stop_at_fifth)
    del stopped
    gc.collect()
    image = plane(50, 60)

    assert kept() is None
    assert np.array_equal(whole(eng, image, nothing), layers_of_whole_numbers(image))


def test_broken_tiles_of_an_image_that_was_stopped_are_not_blamed_on_the_next() -> None:
    card, calls = Card(pixels=0), []
    eng = engine(card, tile=16, dtype=torch.float32)
    card.spoil = lambda stack, exact: stack if len(card.begun) != 2 else stack * np.float32("nan")

    def stop_at_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        residuals(eng, plane(2, 90, 90), stop_at_third)
    image = plane(50, 60)

    assert np.array_equal(whole(eng, image, nothing), layers_of_whole_numbers(image))


def test_an_image_that_was_stopped_takes_nothing_of_another_along() -> None:
    eng, first = engine(Card(pixels=0), tile=16), plane(64, 40)
    stream = eng.stream(64, 40, nothing)
    begun = stream.push(first[:40])

    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        whole(eng, plane(64, 40), stop)

    assert np.array_equal(np.concatenate([begun, stream.push(first[40:])]), layers_of_whole_numbers(first))


def test_two_images_may_take_turns() -> None:
    eng, first, second = engine(Card(pixels=0), tile=16), plane(64, 40), plane(64, 40)
    streams = [eng.stream(64, 40, nothing), eng.stream(64, 40, nothing)]
    results: list[list[np.ndarray]] = [[], []]

    for start in range(0, 64, 8):
        for image, stream, result in zip((first, second), streams, results, strict=True):
            result.append(stream.push(image[start : start + 8]))

    assert np.array_equal(np.concatenate(results[0]), layers_of_whole_numbers(first))
    assert np.array_equal(np.concatenate(results[1]), layers_of_whole_numbers(second))


def test_equal_images_share_stacks() -> None:
    card, images = Card(pixels=8 * 30 * 40), plane(7, 30, 40)

    result = residuals(engine(card), images, nothing)

    assert card.begun == [(7, 30, 40)]
    assert np.array_equal(result, np.stack([layers_of_whole_numbers(image) for image in images]))


@pytest.mark.parametrize("kind", ["auto", "torch"])
def test_equal_images_get_the_bits_of_single_ones_on_a_cpu(kind: str) -> None:
    eng: Engine = Upscaler(device="cpu", engine=kind, tile=32).engine
    images = RNG.random((3, 41, 52)).astype(np.float32)

    assert np.array_equal(residuals(eng, images, nothing), np.stack([whole(eng, y, nothing) for y in images]))


def test_the_precision_of_a_card_stays_close_to_fp32() -> None:
    model, _ = checkpoint.load()
    y = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    dtypes = layer_dtypes(20, "cuda", torch.bfloat16)

    with torch.inference_mode():
        exact = model.residual(y)
        error = Layers(model.kernels, CPU, dtypes)(y) - exact

    assert dtypes == [torch.float32, *[torch.float16] * 3, *[torch.bfloat16] * 15, torch.float32]
    assert 0 < float(error.square().mean().sqrt()) < 0.02 * float(exact.square().mean().sqrt())


def test_a_program_is_made_at_the_second_use_and_the_oldest_is_given_up() -> None:
    made: list[tuple[int, ...]] = []
    recent = Recent(lambda shape: made.append(shape) or str(shape), limit=2)

    assert recent.get((1,)) is None
    assert [recent.get((n,)) for n in (1, 1, 2, 2, 1, 3, 3)] == ["(1,)", "(1,)", None, "(2,)", "(1,)", None, "(3,)"]
    assert recent.get((2,)) == "(2,)"  # made again: (1,) was used after it
    assert made == [(1,), (2,), (3,), (2,)]


@pytest.mark.parametrize(
    ("free_gb", "tile", "pixels"),
    [(80, 1048, 8 << 20), (8, 1048, 3_636_363), (2, 1048 // 2, 909_090), (0.001, 32, 454)],
)
def test_a_card_computes_as_much_at_a_time_as_fits(free_gb: float, tile: int, pixels: int) -> None:
    assert first_budget(0, 20, int(free_gb * 1e9)) == Budget(tile, pixels, 20, 64)
