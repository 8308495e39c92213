"""What does `resume` make of the record at a destination? A real Redis is wiped under real workers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import redis
from helpers import Service, make_photos, wait_until

from worker.errors import DestinationTaken, NotFound, UsageError
from worker.jobs import State

pytestmark = pytest.mark.redis

WHOLE = {"total": 100, "done": 98, "failed": 2, "skipped": 0, "ignored": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    photos = make_photos(tmp_path / "photos", 100, size=(40, 32))
    for name in ("0003.jpg", "0010.png"):
        (photos / ("sub" if name == "0003.jpg" else ".") / name).write_bytes(b"no picture")
    (photos / "notes.txt").write_text("left out")
    return photos


def _done(service: Service, job_id: str) -> int:
    return int(service.client.ledger.record(job_id).counters.get("done", 0))


def _wipe(service: Service) -> None:
    redis.Redis.from_url(service.settings.redis_url).flushall()


def test_a_job_goes_on_after_redis_was_wiped(service: Service, source: Path) -> None:
    expected = service.rows(service.run(source, source.with_name("expected"))["id"])
    target = source.with_name("out")
    job_id = service.submit(source, target)
    wait_until(lambda: len(list((target / ".vdsr" / job_id).glob("results/*"))) >= 1)
    _wipe(service)
    with pytest.raises(NotFound):
        service.client.ledger.record(job_id)

    assert service.client.resume(str(target)) == [job_id]
    summary = service.wait(job_id)

    assert (summary["state"], summary["images"]) == ("completed", WHOLE)
    assert summary["failures"] == {"unreadable": 2}
    assert summary["psnr"]["images"] == 98
    rows = service.rows(job_id)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert (row.outcome, row.psnr, row.width) == (expected[key].outcome, expected[key].psnr, expected[key].width)
        if row.outcome == "done":
            assert (target / row.output).read_bytes() == (source.with_name("expected") / row.output).read_bytes()
    wait_until(lambda: "ended" in json.loads((target / ".vdsr" / job_id / "job.json").read_text()))


def test_a_cancelled_job_can_go_on_with_what_was_left(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.submit(source, target)
    wait_until(lambda: _done(service, job_id) >= 5)
    service.client.cancel(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id))
    stopped = service.client.ledger.record(job_id)
    assert stopped.state is State.CANCELLED
    with pytest.raises(NotFound, match="cancelled"):
        service.client.resume(str(target))
    first = {path: path.stat().st_mtime_ns for path in target.rglob("*.png")}

    assert service.client.resume(str(target), job_id) == [job_id]
    summary = service.wait(job_id)

    assert (summary["state"], summary["images"]) == ("completed", WHOLE)
    assert len(service.rows(job_id)) == 100
    assert first
    assert all(path.stat().st_mtime_ns == moment for path, moment in first.items())  # none was done twice


def test_a_job_that_failed_can_go_on_once_its_cause_is_mended(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.submit(source, target)
    wait_until(lambda: _done(service, job_id) >= 1)
    service.client.ledger.stop(job_id, State.FAILED, "the moon")
    service.client.queue.member(job_id, "finish")
    wait_until(lambda: not service.client.ledger.is_open(job_id))

    service.client.resume(str(target), job_id)

    assert service.wait(job_id)["images"] == WHOLE


def test_what_cannot_go_on_says_why(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.submit(source, target)
    with pytest.raises((NotFound, DestinationTaken), match="open"):
        service.client.resume(str(target))
    with pytest.raises(DestinationTaken, match=job_id):
        service.client.resume(str(target), job_id)
    service.wait(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id))
    for chosen in (None, job_id):
        with pytest.raises(NotFound, match=re.escape(f"{job_id} (completed)")):
            service.client.resume(str(target), chosen)
    with pytest.raises(NotFound, match="nonsense"):
        service.client.resume(str(target), "nonsense")
    with pytest.raises(NotFound):
        service.client.resume(str(source))


def test_a_record_that_was_moved_or_damaged_is_not_guessed_at(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.run(source, target)["id"]
    wait_until(lambda: not service.client.ledger.is_open(job_id))
    record = target / ".vdsr" / job_id
    spec = json.loads((record / "job.json").read_text())
    spec["ended"]["state"] = "cancelled"
    (record / "job.json").write_text(json.dumps(spec))
    shutil.copytree(target, source.with_name("moved"))

    with pytest.raises(UsageError, match="was written for"):
        service.client.resume(str(source.with_name("moved")), job_id)
    part = record / "results" / "0000001.jsonl"
    part.write_text(part.read_text()[:-20])
    with pytest.raises(UsageError, match="part 1 of the results"):
        service.client.resume(str(target), job_id)
    part.unlink()
    service.client.resume(str(target), job_id)
    assert service.wait(job_id)["images"] == WHOLE
    wait_until(lambda: not service.client.ledger.is_open(job_id))
    for nonsense in (
        "{",
        "5",
        "[]",
        json.dumps({**spec, "ended": {"state": "lost"}}),
        json.dumps({**spec, "ended": 5}),
    ):
        (record / "job.json").write_text(nonsense)
        with pytest.raises(NotFound, match=r"job\.json cannot be read"):
            service.client.resume(str(target), job_id)


def test_a_wiped_redis_in_mid_retry_loses_nothing(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.run(source, target)["id"]
    wait_until(lambda: not service.client.ledger.is_open(job_id))
    shutil.copy(source / "0002.png", source / "0010.png")
    assert service.client.retry(job_id) == 2
    _wipe(service)

    service.client.resume(str(target), job_id)

    summary = service.wait(job_id)
    assert summary["images"] == {**WHOLE, "done": 99, "failed": 1}
    assert summary["failures"] == {"unreadable": 1}


def test_submitting_twice_is_one_job(service: Service, source: Path) -> None:
    target = source.with_name("out")
    job_id = service.submit(source, target)

    assert service.submit(source, target) == job_id
    with pytest.raises(DestinationTaken, match=job_id):
        service.submit(source, target, scale=3)
    with pytest.raises(DestinationTaken, match=job_id):
        service.submit(source / "0002.png", target / "sub" / "0001.png")

    assert service.wait(job_id)["images"] == WHOLE
    assert [path.name for path in (target / ".vdsr").iterdir()] == [job_id]
