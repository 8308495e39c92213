"""Weights are read without running code, and only if they are exactly what they claim."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as serialise

from vdsr import checkpoint
from vdsr.errors import CheckpointError
from vdsr.model import VDSR


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    checkpoint.save(VDSR(), path, version="test")
    return path


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = VDSR()
    identity = checkpoint.save(model, tmp_path / "a.safetensors", version="1", notes={"seed": "4"})

    loaded, same = checkpoint.load(tmp_path / "a.safetensors", sha256=identity.sha256)

    assert same == identity == checkpoint.identify(tmp_path / "a.safetensors")
    assert checkpoint.read_card(tmp_path / "a.safetensors")["seed"] == "4"
    for mine, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_digest_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="expected 000"):
        checkpoint.load(saved, sha256="0" * 64)


@pytest.mark.parametrize("cut", [0, 4, 100, 5000, 1_000_000])
def test_a_file_that_was_cut_short_is_refused(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])

    with pytest.raises(CheckpointError):
        checkpoint.load(saved)


def test_missing_and_unexpected_tensors_are_refused(tmp_path: Path) -> None:
    state = dict(VDSR().state_dict())
    card = {"format": checkpoint.FORMAT, "version": "x", "depth": "20", "channels": "64"}
    first = state.pop("layers.0.weight")
    (tmp_path / "a").write_bytes(serialise(state, metadata=card))
    (tmp_path / "b").write_bytes(serialise({**state, "layers.0.weight": first, "extra": first + 1}, metadata=card))

    for name in ("a", "b"):
        with pytest.raises(CheckpointError, match="does not hold the network"):
            checkpoint.load(tmp_path / name)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = VDSR()
    with torch.no_grad():
        model.layers[3].weight[0] = float("nan")
    checkpoint.save(model, tmp_path / "a", version="x")

    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.load(tmp_path / "a")


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_never_run(tmp_path: Path, write: object) -> None:
    write({"state_dict": Bomb(tmp_path / "owned")}, tmp_path / "evil.pth")

    for read in (checkpoint.load, checkpoint.import_state_dict):
        with pytest.raises(CheckpointError):
            read(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_a_plain_state_dict_with_other_names_is_imported(tmp_path: Path) -> None:
    model = VDSR()
    named = {f"module.residual.{i}.conv.weight": p for i, p in enumerate(model.state_dict().values())}
    torch.save({"epoch": 50, "state_dict": named}, tmp_path / "public.pth")

    imported = checkpoint.import_state_dict(tmp_path / "public.pth")

    for mine, theirs in zip(model.parameters(), imported.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_network_is_not_imported(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match="twenty 3x3"):
        checkpoint.import_state_dict(tmp_path / "a.pth")


def test_a_file_of_text_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("root:x:0:0:root:/root:/bin/bash\n")

    with pytest.raises(CheckpointError, match="not a plain state dict"):
        checkpoint.import_state_dict(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere.safetensors")
