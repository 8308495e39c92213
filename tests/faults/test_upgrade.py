"""Workers of two versions at once: they are replaced one by one under load, in both directions, and nothing is lost.

The other version is this very tree in another folder, with a higher SCHEMA and other weights that ship.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import make_photos, make_weights, vdsr, wait_until
from rig import Node, Rig, rig
from tally import Tally, add, digests

from worker.jobs import SCHEMA

pytestmark = [pytest.mark.redis, pytest.mark.faults]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tomorrow() -> Iterator[Path]:
    """A checkout of a newer version."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    for name in ("vdsr", "worker", "cli"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    jobs = folder / "worker" / "jobs.py"
    text = jobs.read_text()
    assert text.count(f"\nSCHEMA = {SCHEMA}\n") == 1
    jobs.write_text(text.replace(f"\nSCHEMA = {SCHEMA}\n", f"\nSCHEMA = {SCHEMA + 1}\n"))
    (folder / "vdsr" / "weights" / "vdsr.safetensors").write_bytes(make_weights(5, "tomorrow's"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fleet() -> Iterator[Rig]:
    """Two workers of this version, and its weights in production."""
    with rig(["old-1", "old-2"], chunk_images=6, grace_s=60) as made:
        promoted = vdsr({**os.environ, **made.service.environment}, "models", "promote", "shipped")
        assert promoted.returncode == 0, promoted.stderr
        yield made


def newer(environment: dict[str, str], tomorrow: Path) -> dict[str, str]:
    return {**os.environ, **environment, "PYTHONPATH": str(tomorrow)}


def start(fleet: Rig, name: str, environment: dict[str, str]) -> Node:
    node = Node(name, fleet.service.folder, environment)
    fleet.nodes.append(node)
    fleet.wait_for(node)
    return node


def submit_newer(fleet: Rig, tomorrow: Path, *words: str) -> str:
    """By the client of the newer version."""
    command = [sys.executable, "-m", "cli.main", "submit", *words]
    environment = newer(fleet.service.environment, tomorrow)
    folder = fleet.service.folder  # not the repository, which would come first on the module path
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def replace_one_by_one(fleet: Rig, job_id: str, environments: dict[str, dict[str, str]]) -> None:
    """As a rolling restart does: one goes, another comes, while the job runs."""
    for leaving, (name, environment) in zip(list(fleet.nodes), environments.items(), strict=True):
        seen = fleet.counted(job_id)
        wait_until(lambda seen=seen: fleet.counted(job_id) >= seen + 4, 200)
        leaving.ask_to_stop()
        wait_until(lambda leaving=leaving: leaving.ended, 90)
        fleet.nodes.remove(leaving)
        start(fleet, name, environment)


def test_a_rolling_restart_under_load_and_its_rollback_lose_nothing(
    fleet: Rig, tomorrow: Path, tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "a worker replaced by one of another version"
    service = fleet.service
    photos = make_photos(tmp_path / "photos", 72, size=(96, 72))
    whole = tmp_path / "whole"
    service.wait(service.submit(photos, whole, score=False))
    wanted = digests(str(whole), service)
    old = dict(service.environment)
    new = newer(old, tomorrow)
    for name, environment in (("up", new), ("down", old)):
        job_id = service.submit(photos, tmp_path / name, score=False)
        replace_one_by_one(fleet, job_id, {f"{name}-1": environment, f"{name}-2": environment})
        tally.runs += 2
        assert not service.client.ledger.record(job_id).state.ended, "the job was too short for a test"
        service.wait(job_id)
        add(tally, service, job_id, wanted, {})
        by = {(row.worker or "").partition("@")[0] for row in service.rows(job_id).values()}
        assert by & {f"{name}-1", f"{name}-2"}, by  # those of the other version did their part
    assert len(wanted) == 72
    assert tally.clean, tally


def test_a_newer_job_is_done_by_newer_workers_while_older_ones_do_what_they_can(
    fleet: Rig, tomorrow: Path, tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "a newer job among older workers"
    service = fleet.service
    photos = make_photos(tmp_path / "photos", 24)
    older = service.submit(photos, tmp_path / "old", score=False)
    service.wait(older)
    wanted = digests(str(tmp_path / "old"), service)

    job_id = submit_newer(fleet, tomorrow, str(photos), str(tmp_path / "new"), "--no-score")
    logs = fleet.nodes[0].log, fleet.nodes[1].log
    wait_until(lambda: any(f"{job_id} is left to newer workers" in log.read_text() for log in logs), 60)
    told = vdsr({**os.environ, **service.environment}, "status", job_id)
    meanwhile = service.submit(photos, tmp_path / "meanwhile", score=False)
    service.wait(meanwhile)
    assert service.client.ledger._do("hget", f"vdsr:{{{job_id}}}:job", "state") == "queued"  # nobody failed it

    node = start(fleet, "new", newer(service.environment, tomorrow))
    tally.runs += 1
    key = f"vdsr:{{{job_id}}}:job"
    wait_until(lambda: service.client.ledger._do("hget", key, "state") == "completed", 300)

    assert told.returncode == 2
    assert f"it has format {SCHEMA + 1}, and this version knows formats up to {SCHEMA}" in told.stderr
    assert digests(str(tmp_path / "new"), service) == wanted
    record = next((tmp_path / "new" / ".vdsr").iterdir())
    rows = [line for part in sorted((record / "results").iterdir()) for line in part.read_text().splitlines()]
    assert len(rows) == 24
    assert all('"worker": "new@' in row for row in rows)
    assert "is left to newer workers" not in node.text()
    for log in logs:
        assert log.read_text().count(f"{job_id} is left to newer workers") <= 1
    add(tally, service, meanwhile, wanted, {})
    assert tally.clean, tally
