"""The card's executor: its wiring against torch's own signatures everywhere, its results where there is a card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch

import vdsr.cuda
from vdsr import Upscaler, checkpoint
from vdsr.cuda import CudaExecutor
from vdsr.engine import residuals, whole
from vdsr.evaluate import score_degraded
from vdsr.model import VDSR, VDSRConfig
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
        empty=lambda size, **where: torch.full((size,), torch.nan),
    )
    fake.cuda.mem_get_info.return_value = (10**9, 10**9)
    fake.cuda.current_device.return_value = 0
    monkeypatch.setattr(vdsr.cuda, "torch", fake)
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
