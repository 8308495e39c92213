"""Training: the same data for the same step, and the same weights whether or not it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_photos

from vdsr import checkpoint
from vdsr.data import FULL, Patches, batches, image_paths, prepare
from vdsr.train import NonFiniteLoss, TrainConfig, Trainer, main

CONFIG = TrainConfig(steps=6, batch=2, patch=24, warmup=2, seed=5)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Patches:
    photos = make_photos(tmp_path_factory.mktemp("train"), 4, size=(60, 48))
    pictures = [prepare(path, CONFIG.scales) for path in image_paths(photos)]
    return Patches(pictures, patch=CONFIG.patch, batch=CONFIG.batch, seed=CONFIG.seed)


def trained(trainer: Trainer, patches: Patches, stop: int) -> Trainer:
    for _, low, high in batches(patches, trainer.step, stop):
        trainer.train_step(low, high)
    return trainer


def test_a_batch_depends_on_seed_and_step_alone(patches: Patches) -> None:
    low, high = patches.at(3)

    assert low.shape == high.shape == (2, 1, 24, 24)
    assert low.dtype == high.dtype == np.float32
    assert np.array_equal(patches.at(3)[0], low)
    assert not np.array_equal(patches.at(4)[0], low)


def test_patches_are_cut_from_the_same_place_of_both_pictures(patches: Patches) -> None:
    low, high = patches.at(0)

    # The pictures are smooth: bicubic down and up again changes them little, another place would change them much.
    assert np.abs(low - high).mean() < 0.02
    assert high.min() >= 16 / 255 - 1 / FULL
    assert high.max() <= 235 / 255 + 1 / FULL


def test_a_run_that_is_killed_and_resumed_gives_the_same_weights(patches: Patches, tmp_path: Path) -> None:
    whole = trained(Trainer(CONFIG, compiled=False), patches, 6)
    trained(Trainer(CONFIG, compiled=False), patches, 3).save(tmp_path / "state.pt")

    resumed = Trainer(CONFIG, compiled=False)
    resumed.restore(tmp_path / "state.pt")
    trained(resumed, patches, 6)

    assert resumed.step == 6
    for name in ("model", "average"):
        pairs = zip(getattr(whole, name).kernels, getattr(resumed, name).kernels, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_state_of_another_configuration_is_refused(patches: Patches, tmp_path: Path) -> None:
    Trainer(CONFIG, compiled=False).save(tmp_path / "state.pt")

    with pytest.raises(ValueError, match="other values of seed"):
        Trainer(TrainConfig(steps=6, batch=2, patch=24, warmup=2, seed=6), compiled=False).restore(
            tmp_path / "state.pt"
        )


def test_a_loss_that_is_no_number_stops_and_changes_nothing(patches: Patches) -> None:
    trainer = Trainer(CONFIG, compiled=False)
    before = [kernel.clone() for kernel in trainer.model.kernels]
    low, high = patches.at(0)

    with pytest.raises(NonFiniteLoss, match="step 0"):
        trainer.train_step(low * np.float32("nan"), high)

    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.kernels, strict=True))


def test_pictures_smaller_than_a_patch_are_an_error_only_if_all_are(patches: Patches) -> None:
    with pytest.raises(ValueError, match="none of 4 pictures has 500 x 500"):
        Patches(patches.pictures, patch=500, batch=1, seed=0)


def test_the_command_leaves_weights_a_log_and_a_state_to_go_on_from(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 6, size=(60, 48))
    words = ["--data", str(photos), "--out", str(tmp_path / "run"), "--steps", "4", "--batch", "1", "--patch", "24"]
    words += ["--validation", "2", "--report", "2", "--version", "tiny", "--threads", "1"]

    assert main(words) == 0

    model, identity = checkpoint.load(tmp_path / "run" / "vdsr.safetensors")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert identity.version == "tiny"
    assert model.config.depth == 20
    assert [row["step"] for row in rows] == [2, 4]
    assert set(rows[0]["psnr_y"]) == {"2", "3", "4"}
    assert checkpoint.read_card(tmp_path / "run" / "vdsr.safetensors")["command"].endswith("--threads 1")
    assert (tmp_path / "run" / "state.pt").exists()
