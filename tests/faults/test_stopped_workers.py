"""Workers that are asked to stop, as a spot notice does: they finish the image in hand; the rest is another's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import make_photos, wait_until
from PIL import Image
from rig import Node, Rig, rig
from tally import Tally, add, digests

pytestmark = [pytest.mark.redis]

GRACE_S = 60


@pytest.fixture
def fleet() -> Iterator[Rig]:
    """One worker, with more grace than an image takes and less than a chunk does."""
    with rig(["one"], grace_s=GRACE_S, lease_s=120) as made:
        yield made


@pytest.mark.faults
def test_a_worker_that_is_asked_to_stop_finishes_its_image_and_gives_the_rest_back_at_once(
    fleet: Rig, tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "SIGTERM of a worker (spot notice)"
    photos = _slow_photos(tmp_path / "photos", 14)
    leaving = fleet.nodes[0]
    job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
    wait_until(lambda: fleet.counted(job_id) >= 2)

    began = time.monotonic()
    tally.runs += 1
    leaving.ask_to_stop()
    wait_until(lambda: not fleet.leases(job_id), GRACE_S)
    tally.recovery_s.append(time.monotonic() - began)
    finished = _written(tmp_path / "out")
    progress = fleet.progress(job_id)
    wait_until(lambda: leaving.ended, GRACE_S)
    took = time.monotonic() - began

    assert took < GRACE_S / 2  # nobody slept the grace time
    assert 2 <= len(finished) < 14
    recorded = {name for name in progress if name.startswith("row:")}
    assert len(recorded) == len(finished)  # all that was finished is on record,
    begun = {name for name in progress if name.startswith("try:") and progress[name] != "0"}
    assert {name[4:] for name in begun} == {name[4:] for name in recorded}  # and no attempt is held against the others

    fleet.add("two")
    fleet.service.wait(job_id)  # with a lease of two minutes: nobody waits for it to run out
    assert time.monotonic() - began < 110
    again = _written(tmp_path / "out")
    assert {name: again[name] for name in finished} == finished  # not written again
    add(tally, fleet.service, job_id, digests(str(tmp_path / "out"), fleet.service), {})
    assert tally.clean, tally


@pytest.mark.faults
def test_an_image_that_outlasts_the_grace_time_is_given_back_unblamed(fleet: Rig, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.effect_noise((3000, 2500), 60).save(photos / "large.png")
    brief = Node("brief", fleet.service.folder, fleet.service.environment | {"VDSR_GRACE_S": "2"})
    fleet.nodes[0].ask_to_stop()
    fleet.nodes.append(brief)
    wait_until(lambda: fleet.nodes[0].ended)
    job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
    wait_until(lambda: "try:0" in fleet.progress(job_id))

    brief.ask_to_stop()
    wait_until(lambda: brief.ended, 30)

    assert fleet.leases(job_id) == {}
    assert fleet.progress(job_id)["try:0"] == "0"
    assert not list((tmp_path / "out").glob("*.png"))


def test_an_idle_worker_that_is_asked_to_stop_ends_at_once(fleet: Rig) -> None:
    began = time.monotonic()

    fleet.nodes[0].ask_to_stop()
    wait_until(lambda: fleet.nodes[0].ended)

    assert time.monotonic() - began < GRACE_S / 2
    assert fleet.service.client.workers() == []


def _slow_photos(folder: Path, count: int) -> Path:
    """Pictures of some tenths of a second each, all in one chunk."""
    make_photos(folder, count, size=(260, 220))
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)  # small files: chunks are cut by bytes
    return folder


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    """Every output with what changes when it is written again."""
    paths = [path for path in folder.rglob("*.*") if path.is_file() and ".vdsr" not in path.parts]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if path.suffix != ".tmp"}


@pytest.mark.faults
def test_without_the_remapped_signal_a_worker_ends_behind_its_image_too(fleet: Rig, tmp_path: Path) -> None:
    photos = _slow_photos(tmp_path / "photos", 14)
    environment = {name: value for name, value in fleet.service.environment.items() if name != "REMAP_SIGTERM"}
    plain = Node("plain", fleet.service.folder, environment)
    fleet.nodes[0].ask_to_stop()
    fleet.nodes.append(plain)
    wait_until(lambda: fleet.nodes[0].ended)
    job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
    wait_until(lambda: fleet.counted(job_id) >= 2)

    began = time.monotonic()
    plain.ask_to_stop()
    wait_until(lambda: plain.ended, GRACE_S)

    assert time.monotonic() - began < GRACE_S / 2
    assert fleet.leases(job_id) == {}
    assert 2 <= fleet.counted(job_id) < 14


@pytest.mark.faults
def test_a_worker_that_is_asked_to_stop_in_the_last_image_of_a_chunk_ends_behind_it(fleet: Rig, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.effect_noise((160, 120), 60).save(photos / "only.png")
    job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
    wait_until(lambda: fleet.progress(job_id).get("try:0") == "1")

    began = time.monotonic()
    fleet.nodes[0].ask_to_stop()
    wait_until(lambda: fleet.nodes[0].ended, GRACE_S * 2)

    assert time.monotonic() - began < GRACE_S - 10
    assert fleet.counted(job_id) == 1
    assert list((tmp_path / "out").glob("*.png"))
