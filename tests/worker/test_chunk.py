"""One chunk, in workers that die or meet a fault: every image still gets one outcome."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import make_photos

from vdsr import checkpoint
from worker.app import Queue
from worker.chunk import ATTEMPTS, FAULTS
from worker.embedded import LocalRedis, LocalWorker, worker_environment
from worker.errors import UsageError
from worker.jobs import Job, Model, Options, State, new_job_id, too_many_failed
from worker.ledger import Ledger
from worker.parts import Parts
from worker.plan import plan_job
from worker.settings import Settings, load_settings

pytestmark = pytest.mark.redis

WORKER = """
import os, sys, time
import worker.pipeline
from worker.app import make_app
from worker.chunk import do_chunk
from worker.errors import VdsrError
from worker.runtime import Runtime
from worker.settings import load_settings

decode = worker.pipeline.decode

def hazardous(data, **limits):
    if data == b"kills":
        time.sleep(0.5)  # until the others are on their way
        os.kill(os.getpid(), 9)
    if data == b"breaks":
        raise RuntimeError("a fault of ours")
    return decode(data, **limits)

worker.pipeline.decode = hazardous
settings = load_settings()
make_app(settings).set_default()
try:
    do_chunk(Runtime(settings), sys.argv[1], 0)
except VdsrError as exc:
    print(repr(exc), repr(exc.__cause__))
"""
"""A worker's whole life for one chunk, with a decoder that some pictures kill or break."""


@pytest.fixture
def settings() -> Iterator[Settings]:
    """For a Redis of its own: no other worker sweeps it."""
    with tempfile.TemporaryDirectory(prefix="vdsr-") as folder, LocalRedis(Path(folder)) as redis:
        yield load_settings({"VDSR_REDIS_URL": redis.url, "VDSR_LEASE_S": "3", "VDSR_STATE_DIR": folder})


def planned(settings: Settings, photos: Path, **options: str) -> tuple[Ledger, Job]:
    """A job of one chunk, planned and not begun."""
    model = checkpoint.identify()
    job = Job(
        new_job_id(),
        str(photos),
        f"{photos}-x2",
        Options(score=False, **options),
        Model(model.version, model.sha256),
        created=1.0,
    )
    ledger = Ledger(settings.redis_url)
    Parts(job, settings).write_job()
    ledger.create(job)
    plan_job(ledger, job.id, settings, "cpu", lambda chunk: None)
    return ledger, job


def work(settings: Settings, job: Job) -> subprocess.CompletedProcess[str]:
    """One worker at the chunk."""
    environment = {**worker_environment(settings), "VDSR_LEASE_S": "3", "VDSR_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", WORKER, job.id], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("told", "enough"), [(True, FAULTS), (False, ATTEMPTS)])
def test_an_image_that_kills_its_worker_costs_only_itself(
    settings: Settings, tmp_path: Path, told: bool, enough: int
) -> None:
    photos = make_photos(tmp_path / "p", 6)
    (photos / "0003.png").write_bytes(b"kills")
    ledger, job = planned(settings, photos)
    deaths = 0
    while work(settings, job).returncode == -9:
        deaths += 1
        assert deaths <= enough
        if told:  # as Celery's process tells of its child's death
            assert ledger.died("", "signal 9") == [(job.id, 0)]
        else:
            time.sleep(3.2)  # until the dead worker's lease has run out

    record, rows = ledger.record(job.id), Parts(job, settings).results(0)

    assert deaths == enough
    assert [row.key for row in rows if row.outcome == "failed"] == ["0003.png"]
    assert next(row for row in rows if row.key == "0003.png").code == "crashed"
    assert (record.chunks_done, record.counters["done"], record.counters["failed"]) == (1, 6, 1)


def test_a_fault_of_ours_is_told_and_costs_only_its_image(settings: Settings, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 4)
    (photos / "0001.png").write_bytes(b"breaks")
    ledger, job = planned(settings, photos)

    outputs = [work(settings, job).stdout for _ in range(4)]

    assert [("a fault of ours" in output) for output in outputs] == [True, True, True, False]
    failed = [row for row in Parts(job, settings).results(0) if row.outcome == "failed"]
    assert [(row.key, row.code) for row in failed] == [("0001.png", "crashed")]
    assert "RuntimeError('a fault of ours')" in failed[0].message
    assert ledger.record(job.id).counters["done"] == 4


@pytest.mark.parametrize(("limit", "ending"), [("1", State.FAILED), ("20%", State.FAILED), ("25%", State.RUNNING)])
def test_a_job_fails_once_more_images_fail_than_it_allows_and_keeps_what_is_done(
    settings: Settings, tmp_path: Path, limit: str, ending: State
) -> None:
    photos = make_photos(tmp_path / "p", 8)
    for name in ("0002.png", "0004.png"):  # the second and third of the listing
        (photos / name).write_bytes(b"")
    ledger, job = planned(settings, photos, max_failures=limit)

    assert work(settings, job).stdout == ""

    record, rows = ledger.record(job.id), Parts(job, settings).results(0)
    assert record.state is ending
    assert record.counters["failed"] == [row.outcome for row in rows].count("failed") == 2
    assert record.counters["done"] == len(rows) - 2 >= 1
    if ending is State.FAILED:
        assert f"2 of 8 images have failed, over --max-failures {limit}" in record.error
    else:
        assert (record.error, len(rows)) == (None, 8)


def test_a_share_of_failures_waits_until_enough_images_are_listed() -> None:
    options = Options(max_failures="5%")

    assert not too_many_failed(options, 10, 100, complete=False)
    assert too_many_failed(options, 10, 100, complete=True)
    assert too_many_failed(options, 51, 1000, complete=False)
    assert not too_many_failed(options, 50, 1000, complete=True)
    assert not too_many_failed(Options(), 10**6, 10**6, complete=True)


@pytest.mark.parametrize("text", ["-1", "5 %", "many", "%", "1.5"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a number of images, or a share such as 5%"):
        Options(max_failures=text)


def test_results_that_a_dead_worker_wrote_are_taken_over_and_counted(settings: Settings, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 3)
    ledger, job = planned(settings, photos)
    assert work(settings, job).returncode == 0
    rows = Parts(job, settings).results(0)
    ledger.finish(job.id)  # its place is free
    again, twin = planned(settings, photos)  # its worker dies between writing the results and committing them
    Parts(twin, settings).add_results(0, [*rows[:2], rows[2].__class__("x", "x", "failed", 1, code="empty")])

    assert work(settings, twin).returncode == 0

    assert [row.key for row in Parts(twin, settings).results(0)][2] == "x"
    counters = again.record(twin.id).counters
    assert (counters["done"], counters["failed"]) == (2, 1)
    assert ledger.record(job.id).counters["done"] == 3


def test_a_second_planner_adopts_what_the_first_had_written(settings: Settings, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 5)
    ledger, job = planned(settings, photos)
    before = Parts(job, settings).manifest(0)
    (photos / "late.png").write_bytes(b"arrived after the listing")
    twin = Job(**{**vars(job), "id": new_job_id(), "destination": f"{photos}-twin"})
    parts = Parts(twin, settings)
    parts.write_job()
    parts.add_manifest(0, before)  # a planner wrote this part, and died before it told the ledger
    ledger.create(twin)
    queued: list[int] = []

    plan_job(ledger, twin.id, settings, "cpu", queued.append)
    plan_job(ledger, twin.id, settings, "cpu", queued.append)

    assert queued == [0]
    assert parts.manifest(0) == before
    assert ledger.record(twin.id).counters["images"] == 5


def test_a_worker_that_is_asked_to_stop_gives_its_image_back_without_blame(settings: Settings, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 1, size=(1200, 1000))
    mine = replace(settings, grace_s=1, threads=1)
    ledger, job = planned(mine, photos)
    Queue(mine).upscale(job.id, 0)
    progress = f"vdsr:{{{job.id}}}:progress:0"
    with LocalWorker(mine, mine.state_dir):
        wait_until(lambda: ledger._redis.do("hget", progress, "try:0") == "1")

    # Leaving the block has ended the worker as SIGTERM does.
    assert ledger._redis.do("hget", progress, "try:0") == "0"
    assert ledger.lease(job.id, 0, "next", 30).fruitless == 1


def test_a_job_whose_results_cannot_be_written_fails_and_ends(settings: Settings, tmp_path: Path) -> None:
    ledger, job = planned(settings, make_photos(tmp_path / "p", 3))
    (tmp_path / "p-x2" / ".vdsr" / job.id / "results").write_text("a file where a folder is needed")

    work(settings, job)

    record = ledger.record(job.id)
    assert (record.state, record.counters["done"]) == (State.FAILED, 3)
    assert "results" in (record.error or "")
    assert ledger.finish(job.id) is State.FAILED
    assert not ledger.is_open(job.id)


def test_a_chunk_that_is_begun_in_vain_again_and_again_ends_its_job(settings: Settings, tmp_path: Path) -> None:
    ledger, job = planned(settings, make_photos(tmp_path / "p", 3))
    for n in range(10):
        ledger.lease(job.id, 0, f"w{n}", 30)
        ledger.release(job.id, 0, f"w{n}")

    work(settings, job)

    assert ledger.record(job.id).state is State.FAILED
    assert "begun 11 times without a result" in (ledger.record(job.id).error or "")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
