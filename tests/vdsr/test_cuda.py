"""The card's executor: its wiring against torch's own signatures everywhere, its results where there is a card."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, create_autospec

import numpy as np
import pytest
import torch

import vdsr.cuda
from vdsr import Upscaler, checkpoint
from vdsr.cuda import CudaExecutor
from vdsr.engine import residuals, whole
from vdsr.evaluate import score_degraded
from vdsr.interpolated import Interpolated
from vdsr.model import VDSR, VDSRConfig
from vdsr.picture_trial import can_be_trusted
from vdsr.resize import plan_bicubic
from vdsr.torch_engine import TorchEngine

RNG = np.random.default_rng(7)
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
MODEL = VDSR(VDSRConfig(depth=6, channels=4))


def nothing() -> None:
    pass


def planes(*shape: int) -> np.ndarray:
    return RNG.random(shape).astype(np.float32)


@pytest.fixture
def imitation(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch without a card: its CUDA calls are checked for their signatures and do nothing, its tensors stay here."""

    class Torch(SimpleNamespace):
        def __getattr__(self, name: str) -> object:
            return getattr(torch, name)

    fake = Torch(
        cuda=create_autospec(torch.cuda),
        device=lambda *name: torch.device("cpu"),
        empty=lambda size, dtype=torch.float32, **where: torch.full(
            (size,) if isinstance(size, int) else size, torch.nan if dtype.is_floating_point else 99, dtype=dtype
        ),
    )
    fake.cuda.mem_get_info.return_value = (10**9, 10**9)
    fake.cuda.current_device.return_value = 0
    monkeypatch.setattr(vdsr.cuda, "torch", fake)
    fake.recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: fake.recorded.append(stream))
    return fake


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_through_the_slots_comes_out_as_on_a_cpu(imitation: SimpleNamespace, dtype: torch.dtype) -> None:
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), dtype, graphs=0)
    engine = TorchEngine(MODEL, torch.device("cpu"), dtype, 16, executor=executor)
    engine.budget.pixels = 5000
    image = planes(90, 110)

    expected = MODEL.residual(torch.from_numpy(image)[None, None]).detach()[0, 0].numpy()

    tolerance = (1e-5 if dtype == torch.float32 else 0.05) * max(1, np.abs(expected).max())  # the weights are random
    assert np.abs(whole(engine, image, nothing) - expected).max() < tolerance
    assert imitation.cuda.Event.return_value.synchronize.call_count > 4


def test_a_shape_that_comes_again_is_captured_until_memory_runs_short(
    imitation: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = []

    def capture(self: CudaExecutor, shape: tuple[int, ...]) -> object:
        captured.append(shape)
        return self.layers

    monkeypatch.setattr(CudaExecutor, "_capture", capture)
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), torch.float32)
    stack = list(planes(3, 20, 30))

    results = [executor.begin(stack, exact=False)().copy() for _ in range(3)]
    executor.begin(stack, exact=True)()

    assert captured == [(3, 1, 20, 30)]
    assert np.array_equal(results[0], results[2])
    executor.relieve()
    executor.begin(stack, exact=False)()
    executor.begin(stack, exact=False)()
    assert captured == [(3, 1, 20, 30)] * 2


def pictures_by(engine: TorchEngine, images: Sequence[np.ndarray], scale: float = 2) -> list[np.ndarray]:
    plan = plan_bicubic(images[0].shape[:2], scale=scale)
    outs = [np.zeros((*plan.size, image.shape[2]), image.dtype) for image in images]
    engine.pictures(images, plan, outs, nothing)
    return outs


def random_picture(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_go_there_and_back_as_bytes_on_streams_of_their_own(imitation: SimpleNamespace, dtype: type) -> None:
    streams = [MagicMock(name=name) for name in ("to", "compute", "back")]
    imitation.cuda.Stream.side_effect = streams
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), torch.float32, graphs=0)
    engine = TorchEngine(MODEL, torch.device("cpu"), torch.float32, 16, executor=executor)
    engine.budget.pixels = 5000
    images = [random_picture(45, 55, 3, dtype=dtype) for _ in range(2)]

    results = pictures_by(engine, images)

    expected = pictures_by(TorchEngine(MODEL, torch.device("cpu"), torch.float32, 16), images)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(results, expected, strict=True))
    to, compute, back = streams
    areas = len(back.wait_stream.call_args_list)
    assert areas > 4
    assert {call.args for call in back.wait_stream.call_args_list} == {(compute,)}
    assert [call.args for call in compute.wait_stream.call_args_list] == [(to,)] * (areas + 4)  # and both axes' taps
    assert imitation.recorded.count(compute) == areas + 4  # what was allocated for the way there is read by another
    assert imitation.recorded.count(back) == areas


def test_a_graph_s_stack_is_copied_before_the_next_overwrites_it(
    imitation: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = torch.zeros(1, 1, 20, 30)
    monkeypatch.setattr(CudaExecutor, "_capture", lambda self, shape: static.copy_)
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), torch.float32)
    first, second, third = torch.from_numpy(planes(3, 20, 30))
    executor.begin_there([first], exact=False)()

    results = [executor.begin_there([plane], exact=False) for plane in (second, third)]

    (second_residual,), (third_residual,) = (result() for result in results)
    assert torch.equal(second_residual, second)
    assert torch.equal(third_residual, third)


def test_a_tile_that_is_not_finite_is_told_from_its_neighbours(
    imitation: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), torch.float32, graphs=0)
    stack = torch.zeros(3, 20, 30)
    stack[1, 7, 8] = torch.inf

    residuals = executor.begin_there(list(stack), exact=False)()

    assert [residual is None for residual in residuals] == [False, True, False]


BOUND = {torch.float32: 0.01 / 255, torch.bfloat16: 3 / 255}
"""Largest differences on noise, which is worse than any picture: there the same roundings cost 1.0 on a CPU."""


def test_a_capture_leaves_other_threads_alone_and_shares_one_pool(imitation: SimpleNamespace) -> None:
    executor = CudaExecutor(MODEL.kernels, torch.device("cpu"), torch.float32)

    for side in (20, 20, 30, 30):
        executor.begin(list(planes(1, side, side)), exact=False)()

    calls = [call.kwargs for call in imitation.cuda.graph.call_args_list]
    assert [call["capture_error_mode"] for call in calls] == ["thread_local"] * 2
    assert calls[0]["pool"] is calls[1]["pool"]
    assert imitation.cuda.CUDAGraph.return_value.replay.call_count == 2


needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(scope="module")
def model() -> VDSR:
    return checkpoint.load()[0]


def on_card(model: VDSR, dtype: torch.dtype, tile: int = 0, graphs: int = 8) -> TorchEngine:
    device = torch.device("cuda")
    executor = CudaExecutor(model.kernels, device, dtype, graphs=graphs)
    return TorchEngine(model, device, dtype, tile, executor=executor)


def on_cpu(model: VDSR, image: np.ndarray) -> np.ndarray:
    return whole(TorchEngine(model, torch.device("cpu"), torch.float32, 0), image, nothing)


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("dtype", BOUND)
def test_a_card_gives_what_the_cpu_gives_over_many_tiles(model: VDSR, dtype: torch.dtype) -> None:
    image = planes(700, 900)
    engine, expected = on_card(model, dtype, tile=100), on_cpu(model, image)

    for _ in range(3):  # eager, captured, replayed; pinned memory is used again many times
        assert np.abs(whole(engine, image, nothing) - expected).max() < BOUND[dtype]


@pytest.mark.gpu
@needs_card
def test_a_card_takes_rows_as_they_come(model: VDSR) -> None:
    image = planes(300, 200)
    engine = on_card(model, torch.float32, tile=64)
    stream = engine.stream(300, 200, nothing)

    rows = np.concatenate([stream.push(image[start : start + 10].copy()) for start in range(0, 300, 10)])

    assert np.abs(rows - on_cpu(model, image)).max() < 0.01 / 255


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("dtype", BOUND)
def test_graphs_give_what_layer_by_layer_gives(model: VDSR, dtype: torch.dtype) -> None:
    graphs, eager = on_card(model, dtype, graphs=2), on_card(model, dtype, graphs=0)

    for shape in [(64, 64), (50, 90), (64, 64), (120, 33), (64, 64), (50, 90), (120, 33), (50, 90)]:  # and given up
        image = planes(*shape)
        expected = whole(eager, image, nothing)
        for _ in range(2):
            assert np.abs(whole(graphs, image, nothing) - expected).max() < BOUND[dtype]


@pytest.mark.gpu
@needs_card
def test_a_batch_on_a_card_gives_what_single_images_give(model: VDSR) -> None:
    engine, images = on_card(model, torch.bfloat16), planes(37, 41, 52)

    together = residuals(engine, images, nothing)

    assert np.abs(together - np.stack([whole(engine, y, nothing) for y in images])).max() < BOUND[torch.bfloat16]


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("scale", [2, 4])
def test_bf16_on_a_card_costs_less_than_a_hundredth_of_a_decibel(scale: int) -> None:
    from PIL import Image

    from vdsr.data import image_paths
    from vdsr.pillow import to_array

    photos = [to_array(Image.open(path)) for path in image_paths(PHOTOS)]
    exact, fast = (Upscaler(device="cuda", precision=precision) for precision in ("fp32", "auto"))

    for photo in photos:
        loss = score_degraded(exact, photo, scale).vdsr.psnr_y - score_degraded(fast, photo, scale).vdsr.psnr_y
        assert loss < 0.01
    assert fast.redone == 0


@pytest.mark.gpu
@needs_card
def test_a_card_with_little_memory_left_gives_the_same_with_smaller_tiles(model: VDSR) -> None:
    image = planes(1500, 1500)
    engine, expected = on_card(model, torch.float32), on_cpu(model, image)
    engine.budget = vdsr.cuda.first_budget(0, engine.halo, 10**11)  # as if all of a large card were free
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (300 << 20)  # a tile of 1,088 x 1,088 takes twice that
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        result = whole(engine, image, nothing)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert np.abs(result - expected).max() < 0.01 / 255
    assert 32 <= engine.budget.tile < 1048


def by_the_host(model: VDSR, image: np.ndarray, scale: float) -> np.ndarray:
    """Bicubic, network in fp32 and colour, all on the CPU."""
    picture = Interpolated(image, plan := plan_bicubic(image.shape[:2], scale=scale))
    y = np.ascontiguousarray(picture.luminance(0, plan.size[0]), np.float32)
    out = np.empty((*plan.size, image.shape[2]), image.dtype)
    picture.write(y + on_cpu(model, y), 0, slice(None), out)
    return out


def photo() -> np.ndarray:
    from PIL import Image

    from vdsr.data import image_paths
    from vdsr.pillow import to_array

    return to_array(Image.open(image_paths(PHOTOS)[0]).convert("RGB"))[:360, :480]


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("dtype", BOUND)
def test_a_card_s_pictures_pass_their_trial(model: VDSR, dtype: torch.dtype) -> None:
    assert can_be_trusted(on_card(model, dtype))
    assert Upscaler(device="cuda").engine.makes_pictures


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("scale", [1, 2, 2.37])
@pytest.mark.parametrize("samples", [np.uint8, np.uint16])
def test_a_card_makes_the_picture_that_the_host_makes(
    model: VDSR, samples: type, scale: float, dtype: torch.dtype
) -> None:
    unit = np.iinfo(samples).max // 255
    colored = photo().astype(samples) * samples(unit)
    engine = on_card(model, dtype, tile=100)
    for image in (colored, colored[..., 1:2], random_picture(1, 57, 3, dtype=samples)):
        expected = by_the_host(model, image, scale)

        for _ in range(3):  # eager, captured, replayed
            (result,) = pictures_by(engine, [image], scale)
            differ = np.abs(result.astype(np.int64) - expected)
            assert differ.max() <= (unit if dtype == torch.float32 else 4 * unit)
            if dtype == torch.float32 and samples == np.uint8:
                assert np.mean(differ > 0) < 0.005


@pytest.mark.gpu
@needs_card
def test_many_areas_and_pictures_on_a_card_give_the_same(model: VDSR) -> None:
    images = [random_picture(300, 410, 3) for _ in range(6)]
    large = on_card(model, torch.float32)
    engine = on_card(model, torch.float32, tile=64)
    engine.budget.pixels = 200_000
    expected = pictures_by(large, images)

    for _ in range(5):  # what overlaps wrongly may do so once in a while
        for result, wanted in zip(pictures_by(engine, images), expected, strict=True):
            assert np.abs(result.astype(int) - wanted).max() <= 1


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("megabytes", [60, 300])
def test_a_card_with_little_memory_left_makes_the_same_picture(model: VDSR, megabytes: int) -> None:
    image = random_picture(750, 750, 3)
    engine = on_card(model, torch.float32)
    (expected,) = pictures_by(engine, [image])
    engine.executor.relieve()
    engine.budget = vdsr.cuda.first_budget(0, engine.halo, 10**11)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (megabytes << 20)) / total)
    try:
        (result,) = pictures_by(engine, [image])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert np.abs(result.astype(int) - expected).max() <= 1
    assert engine.relieved > 0


@pytest.mark.gpu
@needs_card
def test_a_picture_is_sound_while_another_thread_loads_models(model: VDSR) -> None:
    engine, images = on_card(model, torch.bfloat16, tile=100), [photo()]
    expected, loaded = pictures_by(engine, images), []

    def load() -> None:
        loaded.extend(Upscaler(device="cuda").engine.makes_pictures for _ in range(5))

    thread = threading.Thread(target=load)
    thread.start()
    while thread.is_alive():
        (result,) = pictures_by(engine, images)
        assert np.abs(result.astype(int) - expected[0]).max() <= 1
    thread.join()

    assert loaded == [True] * 5
