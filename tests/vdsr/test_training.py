"""Training: the same data for the same step, and the same weights whether or not it was interrupted."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_photos
from PIL import Image
from tensorboardX.proto import event_pb2

from vdsr import checkpoint
from vdsr.data import FULL, Dataset, Patches, batches, image_paths, prepare, split
from vdsr.errors import DataChanged, ImageUnreadable, NonFinite, StateDamaged, StateMismatch, TrainingError
from vdsr.model import VDSR
from vdsr.training.optimiser import orthogonal
from vdsr.training.recipe import Recipe, read_recipe
from vdsr.training.run import Progress, Result, train
from vdsr.training.trainer import Trainer, validate
from worker.storage.local import LocalStorage

CPU = torch.device("cpu")
SMALL = {"steps": "6", "batch": "2", "patch": "24", "warmup": "2", "seed": "5", "validate_every": "3"}
SMALL |= {"decay_steps": "3"}


def recipe(**changes: object) -> Recipe:
    return read_recipe("best", SMALL | {key: str(value) for key, value in changes.items()})


def dataset(folder: Path, count: int = 5) -> Dataset:
    photos = folder if folder.exists() else make_photos(folder, count, size=(60, 48))
    learn, held = split([prepare(path, (2, 3, 4)) for path in image_paths(photos)], 1)
    return Dataset(learn, held, {"train": len(learn)})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("train") / "photos", 5, size=(60, 48))


@pytest.fixture(scope="module")
def data(photos: Path) -> Dataset:
    return dataset(photos)


def patches(data: Dataset) -> Patches:
    return Patches(data.train, patch=24, batch=2, seed=5)


def run(
    data: Dataset,
    folder: Path,
    chosen: Recipe | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    kind: type[Trainer] = Trainer,
    save_s: float = 0,
) -> Result:
    return train(
        kind(chosen or recipe(), CPU),
        data,
        LocalStorage(folder),
        version="tiny",
        command="vdsr train",
        events=folder / "tensorboard",
        on_progress=on_progress,
        save_s=save_s,
    )


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Stop(Exception):
    pass


def stop_at(step: int) -> Callable[[Progress], None]:
    def check(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return check


def test_a_batch_depends_on_seed_and_step_alone(data: Dataset) -> None:
    low, high = patches(data).at(3)

    assert low.shape == high.shape == (2, 1, 24, 24)
    assert low.dtype == high.dtype == np.float32
    assert np.array_equal(patches(data).at(3)[0], low)
    assert not np.array_equal(patches(data).at(4)[0], low)


def test_batches_drawn_ahead_are_those_of_their_steps(data: Dataset) -> None:
    drawn = list(batches(patches(data), 2, 9))

    assert len(drawn) == 7
    for step, (low, high) in enumerate(drawn, 2):
        assert np.array_equal(low, patches(data).at(step)[0])
        assert np.array_equal(high, patches(data).at(step)[1])
    halves = [next(batches(patches(data), 2, 3, share=slice(rank, None, 2)))[0] for rank in (0, 1)]
    assert np.array_equal(np.concatenate(halves), drawn[0][0])


def test_patches_are_cut_from_the_same_place_of_both_pictures(data: Dataset) -> None:
    low, high = patches(data).at(0)

    # The pictures are smooth: bicubic down and up again changes them little, another place would change them much.
    assert np.abs(low - high).mean() < 0.02
    assert high.min() >= 16 / 255 - 1 / FULL
    assert high.max() <= 235 / 255 + 1 / FULL


def test_pictures_smaller_than_a_patch_are_an_error_only_if_all_are(data: Dataset) -> None:
    with pytest.raises(ValueError, match="none of 4 pictures has 500 x 500"):
        Patches(data.train, patch=500, batch=1, seed=0)


def test_a_prepared_picture_is_kept_on_disk_and_mended_if_it_was_cut_short(photos: Path, tmp_path: Path) -> None:
    path = image_paths(photos)[0]
    plain, kept = prepare(path, (2, 3)), prepare(path, (2, 3), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])

    again = prepare(path, (2, 3), cache=tmp_path)

    assert np.array_equal(plain.hr, kept.hr)
    assert np.array_equal(again.bicubic[3], plain.bicubic[3])
    assert file.read_bytes() == whole


def test_a_collection_may_have_more_files_than_may_be_open(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    photos = make_photos(tmp_path / "many", 330, size=(16, 16))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300 + len(os.listdir("/proc/self/fd")), limit[1]))
        pictures = [prepare(path, (2,), cache=tmp_path / "cache") for path in image_paths(photos)]
        patches = Patches(pictures, patch=8, batch=330, seed=0)
        low, _ = patches.at(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    assert low.shape == (330, 1, 8, 8)


def test_an_image_of_16_bits_is_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((24, 24), 40_000, np.uint16)).save(tmp_path / "a.png")

    with pytest.raises(ImageUnreadable, match="convert it to 8-bit"):
        prepare(tmp_path / "a.png", (2,))


def test_an_image_that_is_too_large_or_too_small_is_left_out_before_it_does_harm(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "large.png")
    Image.new("L", (16, 16)).save(tmp_path / "small.png")

    with pytest.raises(ImageUnreadable, match="300 x 200 pixels, over the limit of 59,999"):
        prepare(tmp_path / "large.png", (2,), max_pixels=59_999)
    with pytest.raises(ImageUnreadable, match="16 x 16 pixels, less than 17 a side"):
        prepare(tmp_path / "small.png", (8,))


def test_a_run_that_nobody_named_keeps_the_name_it_began_with(data: Dataset, tmp_path: Path) -> None:
    def named(version: str, *, chosen: bool) -> str:
        store, events = LocalStorage(tmp_path), tmp_path / "tensorboard"
        made = train(Trainer(recipe(), CPU), data, store, version=version, named=chosen, command="", events=events)
        return made.identity.version

    assert named("first", chosen=False) == "first"
    assert named("second", chosen=False) == "first"
    assert named("third", chosen=True) == "third"
    assert json.loads((tmp_path / "run.json").read_text())["version"] == "third"


def test_a_file_of_the_run_that_is_damaged_is_named(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path)
    for name in ("state.pt", "log.jsonl", "run.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(StateDamaged, match=f"the run's {name} is damaged"):
            run(data, tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)

    with pytest.raises(TrainingError, match="batch is 2; it must be a multiple of the 4 processes"):
        Trainer(recipe(), CPU)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_no_image_is_an_image_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)

    with pytest.raises(ImageUnreadable):
        prepare(tmp_path / "a.png", (2,))


def test_an_orthogonalised_matrix_moves_every_direction_alike() -> None:
    matrices = (
        torch.randn(3, 8, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 50])[:, None, None]
    )

    values = torch.linalg.svdvals(orthogonal(matrices))

    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "muon"])
def test_every_optimiser_learns(data: Dataset, optimiser: str) -> None:
    rate = {"sgd": 1e-2, "adam": 1e-3, "muon": 5e-3}[optimiser]
    trainer = Trainer(recipe(optimiser=optimiser, learning_rate=rate, steps=40, batch=4), CPU)
    low, high = Patches(data.train, patch=24, batch=4, seed=5).at(0)

    losses = [float(trainer.train_step(low, high)) for _ in range(12)]

    assert losses[-1] < losses[0] / 2


def test_the_loss_of_the_paper_is_half_the_squared_error_of_a_patch() -> None:
    trainer = Trainer(recipe(loss="l2"), CPU)
    error = torch.full((3, 1, 4, 4), 0.5)

    assert float(trainer._loss(error)[0]) == 0.5 * 16 * 0.25


def test_adjustable_clipping_bounds_every_entry_by_theta_over_the_rate() -> None:
    from vdsr.training.optimiser import clip

    kernel = torch.nn.Parameter(torch.zeros(4))
    kernel.grad = torch.tensor([5.0, -5.0, 0.001, 0.0])
    clip([kernel], recipe(clip="adjustable", clip_at=0.01), rate=0.1)

    assert torch.allclose(kernel.grad, torch.tensor([0.1, -0.1, 0.001, 0.0]))


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "muon"])
def test_a_run_that_is_stopped_and_resumed_gives_the_same_weights(
    data: Dataset, tmp_path: Path, optimiser: str
) -> None:
    chosen = recipe(optimiser=optimiser, learning_rate=1e-3)
    whole = run(data, tmp_path / "whole", chosen)
    with pytest.raises(Stop):
        run(data, tmp_path / "cut", chosen, stop_at(4))

    resumed = run(data, tmp_path / "cut", chosen)

    weights = [torch_tensors(tmp_path / name) for name in ("whole", "cut")]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert resumed.psnr_y == whole.psnr_y
    assert [row["step"] for row in rows(tmp_path / "cut")] == [row["step"] for row in rows(tmp_path / "whole")]
    sessions = json.loads((tmp_path / "cut" / "run.json").read_text())["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 4]


def torch_tensors(folder: Path) -> list[torch.Tensor]:
    return checkpoint.load(folder / "vdsr.safetensors")[0].kernels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_card_that_is_stopped_and_resumed_gives_the_same_weights(
    data: Dataset, tmp_path: Path, precision: str
) -> None:
    def trained(name: str, on_progress: Callable[[Progress], None] = lambda progress: None) -> None:
        chosen = recipe(precision=precision, learning_rate=1e-3)
        folder = tmp_path / name
        train(
            Trainer(chosen, torch.device("cuda", 0)),
            data,
            LocalStorage(folder),
            version="tiny",
            command="",
            events=folder / "tensorboard",
            on_progress=on_progress,
        )

    trained("whole")
    with pytest.raises(Stop):
        trained("cut", stop_at(4))
    trained("cut")

    pairs = zip(torch_tensors(tmp_path / "whole"), torch_tensors(tmp_path / "cut"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


KILLED = """
import sys; sys.path.insert(0, sys.argv[3])
import torch
from pathlib import Path
from test_training import dataset, recipe, run
torch.set_num_threads(1)
run(dataset(Path(sys.argv[1])), Path(sys.argv[2]), recipe(steps=400))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_weights(photos: Path, data: Dataset, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(photos), str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "state.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    reached = torch.load(io.BytesIO((folder / "state.pt").read_bytes()), weights_only=True)["step"]
    assert 0 < reached < 60

    run(data, folder, recipe(steps=60, decay_steps=3))  # a level schedule may be shortened
    run(data, tmp_path / "whole", recipe(steps=60, decay_steps=3))
    torch.set_num_threads(threads)

    pairs = zip(torch_tensors(folder), torch_tensors(tmp_path / "whole"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_finished_run_that_is_asked_for_again_gives_the_same_file(data: Dataset, tmp_path: Path) -> None:
    first = run(data, tmp_path)
    again = run(data, tmp_path)

    assert again.identity == first.identity
    assert checkpoint.identify(tmp_path / "vdsr.safetensors") == first.identity


def test_a_state_of_another_recipe_is_refused_with_what_differs(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path)

    with pytest.raises(StateMismatch, match=r"other values of steps, seed.*seed=5"):
        run(data, tmp_path, recipe(seed=6, steps=8))


def test_a_run_does_not_go_on_with_other_images(data: Dataset, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    other = dataset(tmp_path / "other", 4)

    with pytest.raises(DataChanged, match="not those that the run began with"):
        run(other, tmp_path / "run")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(data, tmp_path, on_progress=stop_at(3))

    class Poisoned(Trainer):
        def train_step(self, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
            return super().train_step(low * np.float32("nan") if self.step == 4 else low, high)

    with pytest.raises(NonFinite, match=r"step 4; .*lower learning_rate") as caught:
        run(data, tmp_path, kind=Poisoned, save_s=1000)

    assert caught.value.step == 4
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(kernel).all() for kernel in state["model"].values())


def test_weights_that_are_no_numbers_are_never_saved(data: Dataset, tmp_path: Path) -> None:
    class Poisoned(Trainer):
        def train_step(self, low: np.ndarray, high: np.ndarray) -> torch.Tensor:
            loss = super().train_step(low, high)
            self.model.kernels[3].data[0] = torch.nan  # what a step makes of an infinite gradient
            return loss

    with pytest.raises(NonFinite):
        run(data, tmp_path, kind=Poisoned, save_s=0)

    assert not (tmp_path / "state.pt").exists()


def test_a_run_records_what_it_was_made_with(data: Dataset, tmp_path: Path) -> None:
    result = run(data, tmp_path)

    record = json.loads((tmp_path / "run.json").read_text())
    card = checkpoint.read_card(tmp_path / "vdsr.safetensors")
    assert record["recipe"] == recipe().to_dict()
    assert record["data"] == {"digest": data.digest, "validation": data.validation_digest}
    session = record["sessions"][0]
    assert len(session["code"]["sha256"]) == 64
    assert session["packages"]["torch"] == torch.__version__
    assert json.loads(card["recipe"]) == record["recipe"]
    assert (card["version"], card["command"]) == ("tiny", "vdsr train")
    assert set(result.psnr_y) == {2, 3, 4}
    assert [sorted(row) for row in rows(tmp_path)] == [["learning_rate", "loss", "psnr_y", "seconds", "step"]]


def test_the_curves_are_tensorboard_events_told_once_however_often_a_run_goes_on(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(data, tmp_path, on_progress=stop_at(4))
    run(data, tmp_path)

    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events, position = file.read_bytes(), [], 0
    while position < len(content):  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[position : position + 8], "little")
        event = event_pb2.Event()
        event.ParseFromString(content[position + 12 : position + 12 + length])
        events += [(event.step, value.tag) for value in event.summary.value]
        position += 16 + length
    assert (6, "train/loss") in events
    assert (6, "validation/psnr_y_x4") in events
    assert len(events) == len(set(events))


@pytest.mark.slow
def test_two_processes_share_a_run_and_come_to_the_weights_of_one(photos: Path, tmp_path: Path) -> None:
    words = ["--local", "--data", str(photos), "--validation", "1", "--version", "shared", "--json"]
    for change in ("steps=4", "batch=4", "patch=24", "optimiser=sgd", "learning_rate=0.01", "precision=fp32", "ema=0"):
        words += ["--set", change]
    environment = {
        **os.environ,
        "VDSR_STATE_DIR": str(tmp_path / "state"),
        "VDSR_CACHE_DIR": str(tmp_path / "cache"),
        "VDSR_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    here = Path(sys.executable).parent
    torchrun = [str(here / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
    for prefix, name in (([], "one"), (torchrun, "two")):
        command = [*prefix, str(here / "vdsr"), "train", *words, "--run", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"version"') == 1

    for a, b in zip(torch_tensors(tmp_path / "one"), torch_tensors(tmp_path / "two"), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["sessions"][0]["processes"] == 2


def test_a_fraction_is_degraded_too_and_cuts_nothing(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 50), np.uint8)).save(tmp_path / "a.png")

    picture = prepare(tmp_path / "a.png", (1.5, 2, 3.5))
    validated = validate(VDSR(), [picture])

    assert picture.shape == (66, 50)  # what 2 divides
    assert [picture.bicubic[s].shape for s in (1.5, 2, 3.5)] == [(66, 50)] * 3
    assert validated[1.5][0] > validated[2][0] > validated[3.5][0]
