"""The compose file's own commands and environment, started without Docker, and the walk-through typed against them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from helpers import make_photos

from cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
NOT_THERE = frozenset({"metrics"} - COMMANDS.keys())
"""Services whose command is not part of this version."""
PAGE = ROOT / "docs" / "howto" / "compose.md"


@pytest.fixture(scope="module")
def without_docker() -> ModuleType:
    """The script, which lies in no package."""
    spec = importlib.util.spec_from_file_location("without_docker", ROOT / "deploy" / "without_docker.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.redis
@pytest.mark.s3
def test_every_command_of_the_walk_through_works(without_docker: ModuleType, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 4)

    said = without_docker.walk(PAGE, tmp_path / "up", {"PHOTOS": str(photos), "VDSR_THREADS": "1"}, NOT_THERE)

    assert len(said) == 10
    first, second = [words for line, words in said.items() if " vdsr submit " in line]
    assert "4 done" in first
    assert "2 done" in second
    listed = next(words for line, words in said.items() if line.endswith("vdsr list"))
    assert listed.count("completed") == 2
    assert (tmp_path / "up" / "report.html").stat().st_size > 10_000
    left_out = next(words for line, words in said.items() if " up " in line)
    assert not re.search(r"^(redis|s3|worker|trainer):", left_out, re.M)


def test_compose_fills_in_variables_and_their_defaults(without_docker: ModuleType) -> None:
    text = "a: ${ONE:-1}\nb: ${TWO:-./x}:/y\n"

    assert without_docker.filled(text, {"ONE": "", "TWO": "/z"}) == "a: 1\nb: /z:/y\n"


def test_services_have_what_the_file_and_the_image_say(without_docker: ModuleType, tmp_path: Path) -> None:
    plain = without_docker.Plain(tmp_path, {"AWS_SECRET_ACCESS_KEY": "mine"})

    worker = plain.services["worker"]
    assert worker.command[1:] == ["-A", "worker", "worker", "-Q", "upscale", "-n", "vdsr@%h"]
    assert worker.environment["VDSR_REDIS_URL"] == f"redis://127.0.0.1:{plain.ports['redis:6379']}/0"
    assert worker.environment["AWS_SECRET_ACCESS_KEY"] == "mine"
    assert worker.environment["REMAP_SIGTERM"] == "SIGQUIT"
    assert worker.environment["VDSR_HEALTH_DIR"] == str(tmp_path / "worker/root/tmp/health")
    assert worker.health == ["vdsr", "health", "--live"]
    assert "worker-gpu" not in plain.services
    assert "noeviction" in plain.services["redis"].command


def test_a_container_may_stop_for_longer_than_its_worker_takes() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    for name in ("worker", "worker-gpu", "trainer"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= 20 + 10, name  # VDSR_GRACE_S, and an end
        assert services[name]["init"] is True


def test_the_image_is_given_all_of_the_package_and_nothing_of_it_is_ignored(tmp_path: Path) -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    built = re.split(r"^FROM ", dockerfile.partition(" AS built-cpu\n")[2], flags=re.M)[0]
    assert built == re.split(r"^FROM ", dockerfile.partition(" AS built-cuda\n")[2], flags=re.M)[0]
    copied = [words.split() for words in re.findall(r"^COPY ((?!--).*)$", dockerfile, re.M)]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source for *sources, _ in copied for source in sources} == let_in
    for name in let_in:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)

    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=120)

    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    listing = ["git", "ls-files", "vdsr", "worker", "cli"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(tracked) > 100
    assert sorted(set(tracked) - made) == []


def test_the_image_has_the_packages_that_the_project_needs() -> None:
    words = [sys.executable, ROOT / "deploy" / "requirements.py", ROOT / "pyproject.toml"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()

    names = {re.split(r"[<>=;\[ ]", line)[0] for line in printed}
    assert {"celery", "torch", "boto3", "matplotlib", "pillow"} <= names
    assert names.isdisjoint({"pytest", "onnxruntime", "sphinx"})
