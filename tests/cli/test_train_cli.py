"""`vdsr train` and `vdsr models` as a user meets them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import VDSR, make_photos, make_weights, vdsr, wait_until

from vdsr import checkpoint

SMALL = ["--validation", "1"]
for change in ("steps=8", "decay_steps=2", "batch=2", "patch=24", "warmup=1", "scales=[2, 3, 4]"):
    SMALL += ["--set", change]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "hr", 4, size=(60, 48))


def test_training_here_can_be_interrupted_and_goes_on_by_the_same_command(
    state: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    words = ["train", "--local", "--data", photos, "--run", tmp_path / "run", *SMALL, "--version", "mine"]
    long = [*words, "--set", "steps=100000"]
    command = subprocess.Popen([VDSR, *map(str, long)], env=state, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "run" / "state.pt").exists)

    second = vdsr(state, *long)
    assert (second.returncode, "another process trains in" in second.stderr) == (2, True), second.stderr
    command.send_signal(signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 130
    assert "goes on from here" in said
    assert "mine" in (tmp_path / "run" / "report.html").read_text()
    reached = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"]
    done = vdsr(state, *words, "--set", f"steps={reached + 60}", "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["version"] == "mine"
    assert set(result["psnr_y"]) == {"2", "3", "4"}
    assert checkpoint.identify(tmp_path / "run" / "vdsr.safetensors").sha256 == result["sha256"]
    assert "--version mine" in checkpoint.read_card(tmp_path / "run" / "vdsr.safetensors")["command"]


@pytest.mark.redis
def test_a_run_on_the_queue_can_be_left_rejoined_and_cancelled(
    state: dict[str, str], photos: Path, tmp_path: Path
) -> None:
    dev = subprocess.Popen([VDSR, "dev", "--train"], env=state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: vdsr(state, "list").returncode == 0)
        words = ["train", "--data", photos, *SMALL]
        endless = vdsr(state, *words, "--set", "steps=100000", "--detach")
        run = endless.stdout.strip()
        assert run.startswith("train-")
        assert endless.stdout == f"{run}\n"

        def status() -> dict:
            return json.loads(vdsr(state, "status", run, "--json").stdout)

        wait_until(lambda: status()["progress"].get("step", 0) > 0)
        attached = subprocess.Popen([VDSR, "train", "--attach", run], env=state, stderr=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            attached.wait(1.5)
        attached.send_signal(signal.SIGINT)
        assert f"'vdsr train --attach {run}' follows it again" in attached.communicate(timeout=20)[1]
        assert attached.returncode == 130
        assert status()["state"] == "running"
        assert "of 100,000 steps" in vdsr(state, "status", run).stdout
        assert vdsr(state, "wait", run, "--timeout", "0.5").returncode == 124
        assert run in vdsr(state, "list").stdout
        assert vdsr(state, "cancel", run).stderr == f"{run} is cancelled\n"
        assert vdsr(state, "wait", run).returncode == 4

        published = vdsr(state, *words, "--publish", "--version", "first-try", "--json")
        assert published.returncode == 3, published.stderr  # eight steps cannot beat bicubic
        result = json.loads(published.stdout)["result"]
        assert result["publication"]["promoted"] is False
        forced = vdsr(state, *words, "--publish", "--force", "--version", "second-try")
        assert forced.returncode == 0, forced.stderr
        assert "promoted to production: by --force, although at x2" in forced.stderr
        listed = json.loads(vdsr(state, "models", "list", "--json").stdout)
        assert [version["version"] for version in listed["versions"]] == ["first-try", "second-try"]
        assert listed["aliases"]["production"]["version"] == "second-try"
        assert listed["aliases"]["candidate"]["version"] == "first-try"
        used = vdsr(state, "submit", photos, tmp_path / "out", "--wait")
        assert used.returncode == 0
        assert "model second-try" in used.stderr
        assert vdsr(state, "status", "train-nonsense").returncode == 5
        assert vdsr(state, "status", run, "--failed").returncode == 2
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(60) == 130


def test_models_can_be_published_promoted_rolled_back_and_verified_without_a_redis(
    state: dict[str, str], tmp_path: Path
) -> None:
    for n in (1, 2):
        (tmp_path / f"{n}.safetensors").write_bytes(make_weights(n, f"v{n}"))
        assert vdsr(state, "models", "publish", tmp_path / f"{n}.safetensors").returncode == 0
    shipped = vdsr(state, "models", "list").stdout
    assert "in use, as nothing is in production" in shipped

    for name in ("v1", "v2"):
        promoted = vdsr(state, "models", "promote", name, VDSR_REDIS_URL="redis://localhost:1/0")
        assert promoted.returncode == 0
        assert f"{name} (" in promoted.stderr
        assert "workers could not be told" in promoted.stderr
    assert "v2 is production already" in vdsr(state, "models", "promote", "v2").stderr
    assert "version: v2" in vdsr(state, "models", "show").stdout
    assert vdsr(state, "models", "rollback").stderr.startswith("v1 (")
    assert vdsr(state, "models", "rollback").returncode == 2
    verified = vdsr(state, "models", "verify")
    assert (verified.returncode, verified.stdout) == (0, "v1: good\nv2: good\n")

    scored = json.loads(
        vdsr(state, "eval", make_photos(tmp_path / "hr", 1), "-s", "2", "--model", "v2", "--json").stdout
    )
    assert scored["model"]["version"] == "v2"
    assert "2 versions, 0 damaged, v1 in production" in vdsr(state, "doctor").stdout
    weights = Path(state["VDSR_STATE_DIR"], "models/versions/v2/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    verified = vdsr(state, "models", "verify", "--json")
    assert verified.returncode == 3
    assert json.loads(verified.stdout)["v1"] is None
    assert "damaged" in json.loads(verified.stdout)["v2"]
    refused = vdsr(state, "models", "promote", "v2")
    assert (refused.returncode, "damaged" in refused.stderr) == (2, True)
    unknown = vdsr(state, "models", "promote", "v3")
    assert (unknown.returncode, "has no version 'v3'" in unknown.stderr) == (5, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train"], 2, "nothing to train on; give --data"),
        (["train", "--data", "./nothing", "--local"], 2, "check the path"),
        (
            ["train", "--data", "nothing/here", "--local"],
            2,
            "'nothing/here' does not exist here, and was read as s3://",
        ),
        (["train", "--data", "{photos}", "--local", "--run", "{photos}/0000.jpg/run"], 6, "0000.jpg"),
        (["train", "--data", ".", "--local", "--detach"], 2, "leave out --detach"),
        (["train", "--data", ".", "--force"], 2, "--force belongs to --publish"),
        (["train", "--data", ".", "--recipe", "bset"], 2, "no recipe 'bset'; use best, paper"),
        (["train", "--data", ".", "--set", "steps"], 2, "--set steps has no value"),
        (["train", "--data", ".", "--set", "stps=5"], 2, "no key 'stps'; did you mean 'steps'"),
        (["train", "--data", ".", "--start", "nobody"], 5, "has no version 'nobody'"),
        (["train", "--data", ".", "--version", "a/b", "--publish"], 2, "cannot name a version"),
        (["submit", "{photos}", "--model", "nobody"], 5, "has no version 'nobody'"),
        (["models", "rollback"], 2, "has no version before"),
        (["models", "verify"], 7, "has no versions"),
    ],
)
def test_misuse_is_one_clear_line_and_an_exit_code(
    state: dict[str, str], photos: Path, words: list[str], code: int, message: str
) -> None:
    result = vdsr(state, *(word.format(photos=photos) for word in words))

    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
