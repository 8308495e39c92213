"""Does this version do what an earlier one was asked for, and leave alone what only a later one can do?"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import frozen
import pytest
from helpers import make_photos, vdsr, wait_until
from PIL import Image as Picture

from worker.app import LAYOUT, QUEUE, TRAINING, make_app
from worker.client import Client, draft
from worker.embedded import LocalRedis, guarded, worker_command, worker_environment
from worker.errors import NewerFormat
from worker.jobs import SCHEMA, Image, Job, Model, Options, Outcome, State
from worker.parts import Part, Parts
from worker.settings import Settings, load_settings
from worker.training.ledger import RunLedger
from worker.training.runs import Run

RECORDS = Path(__file__).parents[1] / "records"
FORMATS = sorted(path.name for path in RECORDS.iterdir())

pytestmark = [pytest.mark.redis]


@dataclass(frozen=True)
class Place:
    """A Redis of its own, without workers at first, and where they will work."""

    folder: Path
    settings: Settings
    stack: ExitStack

    @property
    def environment(self) -> dict[str, str]:
        return worker_environment(self.settings)

    @property
    def client(self) -> Client:
        return Client.connect(self.settings)

    def start_worker(self, queue: str = QUEUE) -> Path:
        """One worker, once it has reported; its log."""
        log, command = self.folder / f"{queue}.log", worker_command(name=f"{queue}@%h", queue=queue)
        self.stack.enter_context(guarded(command, log=log, cwd=self.folder, env=self.environment))
        wait_until(lambda: bool(self.client.fleet.workers(queue)), 120)
        return log


@pytest.fixture
def place() -> Iterator[Place]:
    """With nobody in it."""
    yield from _place()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Place, Path]]:
    """With a worker, and its log."""
    for place in _place():
        yield place, place.start_worker()


def _place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = stack.enter_context(LocalRedis(folder))
        settings = load_settings(
            {"VDSR_REDIS_URL": redis.url, "VDSR_STATE_DIR": str(folder), "VDSR_CACHE_DIR": str(folder / "cache"),
             "VDSR_THREADS": "1", "VDSR_LEASE_S": "6"}
        )  # fmt: skip
        yield Place(folder, settings, stack)


# ---- what earlier versions left --------------------------------------------------------------------------------------


def test_the_format_of_today_is_frozen() -> None:
    assert f"format-{SCHEMA}" in FORMATS, "run tests/frozen.py; CONTRIBUTING.md says when"


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_jobs_and_messages_of_an_earlier_version_are_done(place: Place, format_: str) -> None:
    ids = frozen.thaw(RECORDS / format_, place.settings.redis_url, place.folder)
    place.start_worker()

    half, queued = (place.client.wait(ids[name], timeout_s=300) for name in ("half", "queued"))

    assert half is not None
    assert half.state is State.COMPLETED, half.error
    rows = [row for _, part in Parts(half.job, place.settings).all_results() for row in part]
    keys = sorted(str(path.relative_to(place.folder / "photos")) for path in place.folder.glob("photos/**/*.*"))
    assert sorted(row.key for row in rows) == keys  # each once
    assert {row.key: row.code for row in rows if row.outcome != "done"} == {"sub/bad.png": "unreadable"}
    assert (half.counters["done"], half.counters["failed"]) == (len(rows) - 1, 1)
    assert sum(row.worker == "vdsr@frozen" for row in rows) == 4  # what was done then is not done again
    for row in rows:
        if row.outcome == "done":
            with Picture.open(place.folder / "out" / row.output) as made:
                assert made.size == (48, 32)
    assert queued is not None
    assert queued.state is State.COMPLETED, queued.error
    names = sorted(path.name for path in place.folder.glob("small/*.png"))
    assert names == sorted(f"{Path(key).stem}-x1.5.png" for key in keys if "/" not in key and key.endswith("png"))


@pytest.mark.faults
@pytest.mark.parametrize("format_", FORMATS)
def test_a_training_run_of_an_earlier_version_is_done(place: Place, format_: str) -> None:
    run_id = frozen.thaw(RECORDS / format_, place.settings.redis_url, place.folder)["run"]
    place.start_worker(TRAINING)
    runs = RunLedger(place.settings.redis_url)

    wait_until(lambda: runs.record(run_id).state.ended, 180)

    assert runs.record(run_id).state is State.COMPLETED, runs.record(run_id).error
    assert (place.folder / "runs" / run_id / "vdsr.safetensors").exists()


@pytest.mark.parametrize("format_", FORMATS)
def test_records_of_an_earlier_version_are_resumed_reported_and_listed(place: Place, format_: str) -> None:
    job_id = frozen.thaw(RECORDS / format_, place.settings.redis_url, place.folder)["half"]
    state = {**os.environ, **place.environment}
    out = str(place.folder / "out")

    listed = vdsr(state, "list", "--json")
    place.client.ledger._do("flushall")
    logs = vdsr(state, "logs", out)
    report = vdsr(state, "report", out, "-o", str(place.folder / "report.html"))
    resumed = vdsr(state, "resume", out)

    assert job_id in {row["id"] for row in json.loads(listed.stdout)}
    assert len(logs.stdout.splitlines()) == 4
    assert [logs.returncode, report.returncode, resumed.returncode] == [0, 0, 0], report.stderr + resumed.stderr
    record = place.client.ledger.record(job_id)
    assert (record.planned, record.chunks_done, record.counters["done"]) == (4, 1, 4)


def test_a_record_that_was_moved_elsewhere_is_reported_with_its_pictures(place: Place) -> None:
    frozen.thaw(RECORDS / FORMATS[-1], place.settings.redis_url, place.folder)
    moved = place.folder / "else where" / "copy"
    shutil.copytree(place.folder / "out", moved)
    shutil.rmtree(place.folder / "out")
    state = {**os.environ, **place.environment}

    report = vdsr(state, "report", str(moved), "-o", str(place.folder / "page" / "report.html"))
    logs = vdsr(state, "logs", str(moved))
    resumed = vdsr(state, "resume", str(moved))

    assert (report.returncode, logs.returncode) == (0, 0), report.stderr + logs.stderr
    page = (place.folder / "page" / "report.html").read_text()
    assert '<a href="../else%20where/copy/0000.jpg">0000.jpg</a>' in page
    assert page.count("data:image/webp;base64,") == 8  # four pictures before and after
    assert "Cannot be shown" not in page
    assert len(logs.stdout.splitlines()) == 4
    assert resumed.returncode == 2  # nobody writes by a copy of a record
    assert "was written for" in resumed.stderr


def test_what_outputs_are_made_of_reads_as_it_always_has() -> None:
    job = Job("j", "/in", "/out", Options(scale=3), Model("v", "a" * 64))
    assert job.made_of("a.png", "1-2", "b" * 64) == "60e5b8ecdd3d35a26819411380ce2d83"


# ---- what later versions queue ---------------------------------------------------------------------------------------


def newer(job: Job) -> Job:
    return dataclasses.replace(job, schema=SCHEMA + 1)


def drafted(place: Place, name: str, count: int = 4) -> Job:
    photos = make_photos(place.folder / f"{name}-photos", count)
    return draft(str(photos), str(place.folder / name), Options(), place.settings)


def test_a_newer_job_is_left_untouched_and_keeps_nobody_from_older_ones(served: tuple[Place, Path]) -> None:
    place, log = served
    client = place.client
    new = newer(drafted(place, "new"))
    client.submit(new)
    client.ledger.plan(new.id, 0, "", {"images": 4}, last=True)
    client.queue.upscale(new.id, 0)
    wait_until(lambda: new.id in log.read_text())
    key = f"vdsr:{{{new.id}}}"

    old = client.submit(drafted(place, "old"))
    record = client.wait(old, timeout_s=120)
    wait_until(lambda: client.fleet.queue_length(QUEUE) >= 1, 60)  # in the queue again, between two looks of the worker

    assert record is not None
    assert record.state is State.COMPLETED
    raw = client.ledger._do("hgetall", f"{key}:job")
    assert (raw["state"], raw["planned"], raw["chunks_done"]) == ("running", "1", "0")
    assert client.ledger._do("exists", f"{key}:lease", f"{key}:progress:0", f"{key}:done") == 0
    assert "0" in client.ledger._do("zrange", f"{key}:open", 0, -1)
    assert log.read_text().count(f"job {new.id} is left to newer workers") == 1
    client.cancel(new.id)


def test_messages_that_are_put_back_do_not_spin(served: tuple[Place, Path]) -> None:
    place, log = served
    new = newer(drafted(place, "spun"))
    place.client.submit(new)
    wait_until(lambda: new.id in log.read_text())
    before = log.read_text().count("received")

    time.sleep(6)

    taken = log.read_text().count("received") - before
    place.client.cancel(new.id)
    assert taken <= 8, log.read_text()  # after 0.5, 1, 2, 4, ... s


def test_a_message_of_a_newer_layout_goes_back_as_it_was(served: tuple[Place, Path]) -> None:
    place, log = served
    headers = {"vdsr_layout": LAYOUT + 1}
    make_app(place.settings).send_task("vdsr.plan", args=["x"], queue=QUEUE, headers=headers)

    wait_until(lambda: "a message vdsr.plan on the queue is left to newer workers" in log.read_text())

    def is_back() -> bool:
        found = [json.loads(text)["headers"] for text in place.client.fleet.messages(QUEUE)]
        return any(header["vdsr_layout"] == LAYOUT + 1 and header["task"] == "vdsr.plan" for header in found)

    wait_until(is_back)


@pytest.mark.faults
def test_a_worker_that_waits_for_newer_ones_still_stops_at_once(place: Place) -> None:
    with guarded(
        worker_command(name="w@%h"), log=place.folder / "w.log", cwd=place.folder, env=place.environment
    ) as worker:
        wait_until(lambda: bool(place.client.workers()), 120)
        new = newer(drafted(place, "new"))
        place.client.submit(new)
        log = place.folder / "w.log"
        wait_until(lambda: log.read_text().count("received") >= 4)  # so that it waits for seconds
        began = time.monotonic()
        worker.terminate()
        worker.wait(60)
    assert time.monotonic() - began < 15
    assert place.client.ledger._do("hget", f"vdsr:{{{new.id}}}:job", "state") == "queued"


@pytest.mark.faults
def test_a_newer_training_run_is_left_untouched(place: Place) -> None:
    run_id = frozen.thaw(RECORDS / FORMATS[-1], place.settings.redis_url, place.folder)["run"]
    ledger, key = place.client.ledger, f"vdsr:{{{run_id}}}:run"
    spec = json.loads(ledger._do("hget", key, "spec"))
    ledger._do("hset", key, "spec", json.dumps({**spec, "schema": SCHEMA + 1}))

    log = place.start_worker(TRAINING)
    wait_until(lambda: "is left to newer workers" in log.read_text())

    raw = ledger._do("hgetall", key)
    assert (raw["state"], raw["leases"]) == ("queued", "0")
    with pytest.raises(NewerFormat):
        Run.from_json(raw["spec"])


def test_a_client_says_of_a_newer_job_that_it_is_one(place: Place) -> None:
    new, old = newer(drafted(place, "new")), drafted(place, "old")
    place.client.submit(new)
    place.client.submit(old)
    state = {**os.environ, **place.environment}

    status = vdsr(state, "status", new.id)
    listed = vdsr(state, "list", "--json")
    cancelled = vdsr(state, "cancel", new.id)

    assert status.returncode == 2
    assert status.stderr == (
        f"vdsr: job {new.id} was written by a newer vdsr: it has format {SCHEMA + 1}, and this version knows formats "
        f"up to {SCHEMA}; update vdsr here (workers of the newer version go on with it)\n"
    )
    assert [row["id"] for row in json.loads(listed.stdout)] == [old.id]
    assert f"left out: job {new.id} was written by a newer vdsr" in listed.stderr
    assert (listed.returncode, cancelled.returncode) == (0, 0)
    assert place.client.ledger._do("hget", f"vdsr:{{{new.id}}}:job", "state") == "cancelled"


def test_a_part_of_a_newer_planner_is_not_read(place: Place) -> None:
    job = drafted(place, "out")
    newer_parts, parts = Parts(newer(job), place.settings), Parts(job, place.settings)
    newer_parts.add_manifest(0, Part((), 0, "", True))
    parts.add_manifest(1, Part((Image("a", 1, "v", "a"),), 0, "", True))

    with pytest.raises(NewerFormat):
        parts.manifest(0)
    assert parts.manifest(1).images == (Image("a", 1, "v", "a"),)


def test_what_a_newer_worker_adds_to_outcomes_is_left_out_and_to_jobs_is_not() -> None:
    job = Job("j", "/in", "/out", Options(), Model("v", "a"))
    row = Outcome("a", "a", "done", 1)
    options = {**json.loads(job.to_json())["options"], "dithering": "blue"}

    assert Outcome.from_json(json.dumps({**json.loads(row.to_json()), "joules": 3})) == row
    with pytest.raises(NewerFormat, match=f"has format {SCHEMA} with dithering"):
        Job.from_json(json.dumps({**json.loads(job.to_json()), "options": options}))
