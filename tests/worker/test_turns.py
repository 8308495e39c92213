"""Whose turn is it? Open jobs share the workers by priority, however long one job's queue is."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Service, make_photos, running_service, wait_until

from worker.embedded import LocalRedis
from worker.errors import UsageError
from worker.jobs import SCHEMA, Job, Model, Options, Outcome, State, new_job_id
from worker.ledger import Ledger

pytestmark = pytest.mark.redis


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Of a Redis of its own: jobs that other tests left open would take turns, too."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    with LocalRedis(folder) as redis:
        yield Ledger(redis.url)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lone() -> Iterator[Service]:
    """One worker, with chunks of ten images."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    folder.chmod(0o755)
    with LocalRedis(folder) as redis, running_service(redis.url, folder, {"VDSR_CHUNK_IMAGES": "10"}, 1) as service:
        yield service
    shutil.rmtree(folder, ignore_errors=True)


def opened(ledger: Ledger, chunks: int, priority: str = "normal", schema: int = SCHEMA) -> str:
    """A job whose chunks all wait; its id."""
    name = new_job_id()
    options = Options(priority=priority)
    job = Job(name, "/in", f"/{name}", options, Model("v", "0" * 64), created=1.0, schema=schema)
    ledger.create(job)
    for n in range(chunks):
        assert ledger.plan(name, n, "c", {"images": 1, "bytes": 1}, last=n == chunks - 1)
    return name


def do(ledger: Ledger, job_id: str, chunk: int) -> None:
    """Lease and commit it."""
    token = secrets.token_hex(4)
    assert ledger.lease(job_id, chunk, token, 30), (job_id, chunk)
    ledger.commit(job_id, chunk, token, [Outcome("a", "a", "done", 1)], low_water=0)


def shares(ledger: Ledger, queue: list[tuple[str, int]], steps: int) -> list[str]:
    """Which jobs' chunks one worker does who takes these messages from the front."""
    waiting, order = list(queue), []
    while len(order) < steps and waiting:
        job_id, chunk = waiting.pop(0)
        due = ledger.turn(job_id, chunk)
        if due != (job_id, chunk):
            waiting.append((job_id, chunk))
        if ledger.lease(*due, "me", 30) is None:
            continue  # done, out of its turn
        ledger.commit(*due, "me", [Outcome("a", "a", "done", 1)], low_water=0)
        order.append(due[0])
    return order


def test_a_worker_takes_no_turns_for_jobs_of_a_newer_version(ledger: Ledger) -> None:
    newer, ours = opened(ledger, 5, "high", schema=SCHEMA + 1), opened(ledger, 3)

    assert shares(ledger, [(ours, n) for n in range(3)], 3) == [ours] * 3
    assert ledger.turn(newer, 0) == (newer, 0)  # its message, which goes back to the queue


def test_a_damaged_job_takes_no_turns_and_keeps_nobody_from_theirs(ledger: Ledger) -> None:
    damaged, ours = opened(ledger, 5, "high"), opened(ledger, 3)
    ledger._redis.do("hdel", f"vdsr:{{{damaged}}}:job", "spec")

    assert shares(ledger, [(ours, n) for n in range(3)], 3) == [ours] * 3


def test_a_small_job_is_done_in_turns_with_a_huge_one_that_was_there_first(ledger: Ledger) -> None:
    huge, small = opened(ledger, 100), opened(ledger, 5)
    queue = [(huge, n) for n in range(100)] + [(small, n) for n in range(5)]

    order = shares(ledger, queue, 105)

    assert Counter(order) == {huge: 100, small: 5}
    assert order[:10].count(small) == 5
    assert ledger.finish(huge) is State.COMPLETED
    assert ledger.finish(small) is State.COMPLETED
    assert list(ledger._redis.do("hkeys", "vdsr:turns")) == ["clock"]


def test_each_priority_has_ten_times_the_share_of_the_next_and_none_starves(ledger: Ledger) -> None:
    jobs = {name: opened(ledger, 700, name) for name in ("low", "normal", "high")}
    queue = [(jobs[name], n) for name in ("low", "normal", "high") for n in range(700)]

    order = Counter(shares(ledger, queue, 555))

    assert {name: order[job_id] for name, job_id in jobs.items()} == {"high": 500, "normal": 50, "low": 5}


def test_a_job_that_comes_later_shares_from_then_on_and_is_owed_nothing(ledger: Ledger) -> None:
    first = opened(ledger, 400)
    shares(ledger, [(first, n) for n in range(200)], 200)
    second = opened(ledger, 200)

    order = shares(ledger, [(first, n) for n in range(200, 400)] + [(second, n) for n in range(200)], 40)

    assert abs(order.count(first) - order.count(second)) <= 2  # who is first at a tie is chance


def test_what_was_lost_goes_first_and_its_job_pays_for_it(ledger: Ledger) -> None:
    mine, other = opened(ledger, 10), opened(ledger, 10)
    for n in range(3):
        assert ledger.turn(mine, n, at_once=True) == (mine, n)
        do(ledger, mine, n)

    after = []
    for n in range(3, 7):
        after.append(ledger.turn(mine, n))
        do(ledger, *after[-1])
    assert [job_id for job_id, _ in after[:3]] == [other] * 3


def test_two_workers_that_ask_at_once_get_different_chunks(ledger: Ledger) -> None:
    huge, small = opened(ledger, 10), opened(ledger, 10, "high")
    assert {ledger.turn(huge, 0)[0] for _ in range(2)} == {huge, small}  # at a tie

    found = [ledger.turn(huge, 0) for _ in range(5)]

    assert {job_id for job_id, _ in found} == {small}
    assert len(set(found)) == 5


def test_a_spent_message_takes_no_turn(ledger: Ledger) -> None:
    mine, other = opened(ledger, 3), opened(ledger, 3)
    do(ledger, mine, 0)

    assert ledger.turn(mine, 0) == (mine, 0)  # done
    ledger.stop(mine, State.CANCELLED)
    assert ledger.turn(mine, 1) == (mine, 1)  # ended
    assert ledger.turn("no-such-job", 1) == ("no-such-job", 1)
    assert ledger.turn(other, 0) == (other, 0)


def test_a_worker_does_ten_images_while_a_huge_job_waits_before_them(lone: Service, tmp_path: Path) -> None:
    many, few = make_photos(tmp_path / "many", 400), make_photos(tmp_path / "few", 10)
    huge = lone.submit(many, tmp_path / "many-out", model="timed:0.05", score=False)
    wait_until(lambda: lone.client.ledger.record(huge).chunks_done > 1)

    summary = lone.wait(lone.submit(few, tmp_path / "few-out", model="timed:0.05", score=False))
    ahead = lone.client.ledger.record(huge)
    lone.client.cancel(huge)

    assert summary["images"]["done"] == 10
    assert summary["model"]["version"] == "timed:0.05"
    assert not ahead.state.ended
    assert ahead.chunks_done < 20  # of 40
    assert {row.model for row in lone.rows(huge).values()} == {summary["model"]["sha256"]}


def test_a_job_that_pauses_for_others_loses_nothing(lone: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    wanted = {"high": 60, "normal": 60, "low": 60}

    jobs = {name: lone.submit(photos, tmp_path / name, model="timed:0", score=False, priority=name) for name in wanted}
    ended = {name: lone.wait(job_id) for name, job_id in jobs.items()}

    assert {name: summary["images"]["done"] for name, summary in ended.items()} == wanted
    assert {name: len(lone.rows(job_id)) for name, job_id in jobs.items()} == wanted
    assert {name: summary["priority"] for name, summary in ended.items()} == {name: name for name in wanted}


def test_a_stand_in_replaces_nothing(lone: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0000.jpg").write_bytes(b"somebody's picture")

    with pytest.raises(UsageError, match=r"draws stripes to measure the fleet.*give an empty destination"):
        lone.submit(photos, tmp_path / "out", model="timed:0")
    with pytest.raises(UsageError, match="give an empty destination"):
        lone.submit(photos / "0000.jpg", tmp_path / "out" / "0000.jpg", model="timed:0")
