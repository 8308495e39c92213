"""Where settings come from, and how `vdsr config show` tells it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import VDSR, make_photos, vdsr

from worker.embedded import worker_environment
from worker.settings import load_settings

USER = """
redis_url = "redis://me:hidden@user.example:1/0"
tile = 64
chunk_images = 3
max_pixels = 5

[profile.night]
tile = 32
weights = "mine.safetensors"
"""
PROJECT = """
tile = 96
memory_budget = "2G"

[profile.night]
chunk_images = 9
"""


def config(state: dict[str, str], folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    user = Path(state["XDG_CONFIG_HOME"]) / "vdsr"
    user.mkdir(parents=True, exist_ok=True)
    if not (user / "config.toml").exists():
        (user / "config.toml").write_text(USER)
        (folder / "vdsr.toml").write_text(PROJECT)
    return subprocess.run(
        [VDSR, *words], env={**state, **more}, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_environment_wins_over_a_profile_over_this_folder_over_the_users_file(
    state: dict[str, str], tmp_path: Path
) -> None:
    result = config(state, tmp_path, "--profile", "night", "config", "show", "--json", VDSR_MAX_PIXELS="7")

    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    user, project = Path(state["XDG_CONFIG_HOME"]) / "vdsr/config.toml", tmp_path / "vdsr.toml"
    assert shown["max_pixels"] == {"value": 7, "from": "VDSR_MAX_PIXELS"}
    assert shown["tile"] == {"value": 32, "from": f"tile in {user} [profile.night]"}
    assert shown["chunk_images"] == {"value": 9, "from": f"chunk_images in {project} [profile.night]"}
    assert shown["memory_budget"] == {"value": 2 << 30, "from": f"memory_budget in {project}"}
    assert shown["weights"]["value"] == str(user.parent / "mine.safetensors")
    assert shown["engine"] == {"value": "auto", "from": "default"}
    assert shown["redis_url"]["value"] == "redis://me:***@user.example:1/0"


def test_the_table_for_people_masks_passwords_and_names_the_files(state: dict[str, str], tmp_path: Path) -> None:
    result = config(state, tmp_path, "config", "show", VDSR_S3_ENDPOINT_URL="https://me:hidden@s3.example")

    assert "hidden" not in result.stdout + result.stderr
    assert f"{tmp_path}/vdsr.toml: read\n" in result.stderr
    assert ["tile", "96", "tile"] in [line.split()[:3] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("tlie = 1", [], "has 'tlie', which is no setting; did you mean tile?"),
        ("tile = 1.5", [], "is 1.5; give a text or a whole number"),
        ("tile = 'large'", [], "vdsr.toml is 'large'; give a whole number"),
        ("tile = ", [], "vdsr.toml is no TOML"),
        ("s3_endpoint_url = 'http://evil'", [], "sets s3_endpoint_url, which the file of a folder may not"),
        ("[profile.x]\nredis_url = 'redis://evil'", [], "sets redis_url, which the file of a folder may not"),
        ("[profile.x]\ntlie = 1", [], "[profile.x] has 'tlie', which is no setting"),
        ("[profile.night]", ["--profile", "nigth"], "[profile.nigth]; did you mean 'night'?"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_file(
    state: dict[str, str], tmp_path: Path, text: str, words: list[str], said: str
) -> None:
    (tmp_path / "vdsr.toml").write_text(text)

    result = subprocess.run(
        [VDSR, *words, "config", "show"], env=state, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_is_told_what_files_said_since_it_runs_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text('[profile.p]\nlease_s = 9\nmemory_budget = "3G"\nweights = "w"')
    monkeypatch.setenv("VDSR_CONFIG", str(tmp_path / "own.toml"))
    monkeypatch.setenv("VDSR_PROFILE", "p")
    mine = load_settings()
    assert (mine.lease_s, mine.weights) == (9, tmp_path / "w")

    environment = worker_environment(mine)
    for name in ("VDSR_CONFIG", "VDSR_PROFILE", "VDSR_LEASE_S", "VDSR_WEIGHTS", "VDSR_MEMORY_BUDGET"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir("/")

    assert load_settings() == mine


def test_quiet_leaves_results_and_errors(state: dict[str, str], tmp_path: Path) -> None:
    result = config(state, tmp_path, "-q", "config", "show", "--json")
    refused = config(state, tmp_path, "-q", "submit", "./nothing")

    assert (result.returncode, result.stderr) == (0, "")
    assert "does not exist" in refused.stderr
    assert config(state, tmp_path, "-q", "config", "show").stderr == ""


def test_options_of_a_command_have_defaults_in_files_and_the_command_line_wins(
    state: dict[str, str], tmp_path: Path
) -> None:
    make_photos(tmp_path / "in", 2)
    (tmp_path / "vdsr.toml").write_text(
        '[upscale]\nscale = 3\nformat = "webp"\n\n[profile.night]\nupscale.format = "tiff"\n'
    )

    def run(*words: str) -> dict[str, Any]:
        command = [VDSR, *words, "--json"]
        done = subprocess.run(command, env=state, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def told(*words: str) -> tuple[object, str]:
        forecast = run(*words, "upscale", "in", "-n")
        return forecast["target"], forecast["destination"].rpartition("/")[2]

    assert told() == ("x3", "in-x3")
    assert run("upscale", "in", "-n", "--width", "200")["target"] == "200 px wide"
    rows = run("--profile", "night", "config", "show")
    assert rows["upscale.format"] == {"value": "tiff", "from": f"[upscale] in {tmp_path}/vdsr.toml [profile.night]"}
    assert rows["upscale.scale"]["value"] == 3

    (tmp_path / "vdsr.toml").write_text('[upscale]\nformt = "webp"\n')
    wrong = subprocess.run(
        [VDSR, "upscale", "in", "-n"], env=state, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (wrong.returncode, "did you mean format?" in wrong.stderr) == (2, True)


def test_verbose_tells_settings_with_their_origin_and_no_password(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 1)
    secret = {"VDSR_REDIS_URL": "redis://user:geheim@localhost:1/0", "VDSR_TILE": "128"}

    result = vdsr({**state, **secret}, "-v", "upscale", tmp_path / "in", "-n")

    assert result.returncode == 0, result.stderr
    assert "tile = 128   (VDSR_TILE)" in result.stderr
    assert "redis_url = redis://user:***@localhost:1/0   (VDSR_REDIS_URL)" in result.stderr
    assert "geheim" not in result.stderr + result.stdout
