"""The ledger against a real Redis: what is counted once stays counted once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import pytest

from worker.errors import DestinationTaken, JobStopped, LeaseLost, NotFound
from worker.jobs import Job, Model, Options, Outcome, State, new_job_id
from worker.ledger import Ledger, Record, Unfinished

pytestmark = pytest.mark.redis


@pytest.fixture
def ledger(quiet_redis_url: str) -> Ledger:
    return Ledger(quiet_redis_url)


@pytest.fixture
def job(ledger: Ledger) -> Job:
    job = made("/out")
    assert ledger.create(job) == job.id
    return job


def made(destination: str, scale: float = 2) -> Job:
    """A job of its own place: others are open in the same Redis."""
    name = new_job_id()
    return Job(name, "/in", f"/{name}{destination}", Options(scale=scale), Model("v", "0" * 64), created=time.time())


def row(key: str, outcome: str = "done", code: str | None = None) -> Outcome:
    psnr = {"kind": "reference", "bicubic": 30.0, "vdsr": 33.5, "gain": 3.5, "reason": None}
    done = outcome == "done"
    return Outcome(key, key, outcome, 100, code=code, psnr=psnr if done else None, width=1000, height=2000)


def plan(ledger: Ledger, job: Job, chunks: int = 1, images: int = 2) -> None:
    for n in range(chunks):
        assert ledger.plan(job.id, n, "c", {"images": images, "bytes": 100 * images}, last=n == chunks - 1)


def test_a_job_goes_from_queued_to_completed(ledger: Ledger, job: Job) -> None:
    assert ledger.record(job.id).state is State.QUEUED
    plan(ledger, job)
    assert ledger.record(job.id).state is State.RUNNING
    ledger.lease(job.id, 0, "me", 30)

    due = ledger.commit(job.id, 0, "me", [row("a"), row("b", "failed", "empty")], low_water=0)

    assert due == "finish"
    assert ledger.finish(job.id) is State.COMPLETED
    counters = ledger.record(job.id).counters
    assert (counters["images"], counters["done"], counters["failed"], counters["fail:empty"]) == (2, 1, 1, 1)
    assert (counters["psnr_n"], counters["psnr_vdsr_sum"], counters["pixels"]) == (1, 33.5, 4_000_000)


def test_a_chunk_is_counted_once_however_often_it_is_committed(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=2)
    ledger.lease(job.id, 0, "me", 30)

    for _ in range(3):
        ledger.commit(job.id, 0, "me", [row("a"), row("b")], low_water=0)

    assert ledger.record(job.id).counters["done"] == 2
    assert ledger.record(job.id).chunks_done == 1
    assert ledger.lease(job.id, 0, "you", 30) is None


def test_of_many_workers_one_gets_the_lease(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    grants = []
    threads = [
        threading.Thread(target=lambda i=i: grants.append(ledger.lease(job.id, 0, f"w{i}", 30))) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(grant is not None for grant in grants) == 1


def test_finished_images_and_attempts_survive_their_worker(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "dead", 0.01)
    ledger.beat(job.id, 0, "dead", 0.01, start=[0])
    ledger.beat(job.id, 0, "dead", 0.01, done=[(0, row("a"))], start=[1])
    time.sleep(0.05)

    grant = ledger.lease(job.id, 0, "new", 30)

    assert grant is not None
    assert (list(grant.rows), grant.rows[0].key, grant.attempts) == ([0], "a", {0: 1, 1: 1})
    assert ledger.record(job.id).counters["done"] == 1  # seen in status before the commit


def test_a_worker_whose_lease_was_taken_can_record_nothing(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "slow", 0.01)
    time.sleep(0.05)
    assert ledger.sweep(job.id, queue_empty=True) == ["0"]
    ledger.lease(job.id, 0, "new", 30)

    for act in _acts(ledger, job, "slow"):
        with pytest.raises(LeaseLost):
            act()


def _acts(ledger: Ledger, job: Job, token: str) -> list[Callable[[], object]]:
    return [
        lambda: ledger.beat(job.id, 0, token, 30),
        lambda: ledger.beat(job.id, 0, token, 30, done=[(0, row("a"))]),
        lambda: ledger.commit(job.id, 0, token, [row("a"), row("b")], low_water=0),
    ]


def test_the_sweeper_clears_the_token_so_that_a_dead_lease_cannot_come_back(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "dead", 0.01)
    time.sleep(0.05)
    ledger.sweep(job.id, queue_empty=True)

    with pytest.raises(LeaseLost):
        ledger.beat(job.id, 0, "dead", 30)


def test_the_sweeper_leaves_live_leases_and_waiting_messages_alone(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=2)
    ledger.lease(job.id, 0, "me", 30)

    assert ledger.sweep(job.id, queue_empty=True) == []


def test_a_job_that_nobody_planned_is_planned_again(ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger._redis.do("zadd", f"vdsr:{{{job.id}}}:open", {"plan": 0})  # its message was lost half a minute ago

    assert ledger.sweep(job.id, queue_empty=True) == ["plan"]
    assert ledger.sweep(job.id, queue_empty=True) == []


def test_two_planners_cannot_make_the_same_chunk(ledger: Ledger, job: Job) -> None:
    assert ledger.plan(job.id, 0, "a", {"images": 5}, last=False) is not None
    assert ledger.plan(job.id, 0, "a", {"images": 5}, last=False) is None

    assert ledger.record(job.id).counters["images"] == 5


def test_planning_pauses_and_is_asked_for_when_the_window_has_drained(ledger: Ledger, job: Job) -> None:
    for n in range(4):
        ledger.plan(job.id, n, "c", {}, last=False)
    assert ledger.rest(job.id, low_water=2)
    due = []
    for n in range(3):
        ledger.lease(job.id, n, "me", 30)
        due.append(ledger.commit(job.id, n, "me", [], low_water=2))

    assert due == ["", "plan", ""]


def test_planning_does_not_pause_once_the_window_has_drained_meanwhile(ledger: Ledger, job: Job) -> None:
    ledger.plan(job.id, 0, "c", {}, last=False)

    assert not ledger.rest(job.id, low_water=2)


def test_a_cancelled_job_stops_its_workers_and_counts_what_they_had_done(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=3)
    ledger.lease(job.id, 0, "me", 30)
    assert ledger.stop(job.id, State.CANCELLED) is State.RUNNING

    with pytest.raises(JobStopped):
        ledger.beat(job.id, 0, "me", 30)
    assert ledger.lease(job.id, 1, "you", 30) is None
    assert ledger.finish(job.id) is None  # somebody still holds chunk 0
    assert ledger.commit(job.id, 0, "me", [row("a")], low_water=0) == "finish"
    assert ledger.finish(job.id) is State.CANCELLED
    assert ledger.record(job.id).counters["done"] == 1
    assert not ledger.is_open(job.id)


def test_what_a_dead_worker_had_done_is_written_down_after_a_cancel(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "dead", 0.01)
    ledger.beat(job.id, 0, "dead", 0.01, done=[(0, row("a"))])
    time.sleep(0.05)
    ledger.stop(job.id, State.CANCELLED)
    assert ledger.finish(job.id) is None

    assert set(ledger.sweep(job.id, queue_empty=True)) == {"0", "finish"}
    grant = ledger.lease(job.id, 0, "new", 30)

    assert grant is not None
    assert (grant.drain, list(grant.rows)) == (True, [0])
    assert ledger.commit(job.id, 0, "new", list(grant.rows.values()), low_water=0) == "finish"
    assert ledger.finish(job.id) is State.CANCELLED
    assert ledger.record(job.id).counters["done"] == 1


def test_a_lease_is_granted_again_to_who_has_it_should_the_reply_be_lost(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)

    assert ledger.lease(job.id, 0, "me", 30) is not None
    assert ledger.lease(job.id, 0, "me", 30) is not None
    assert ledger.lease(job.id, 0, "you", 30) is None


def test_a_chunk_that_was_never_planned_is_not_leased(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=2)

    assert ledger.lease(job.id, 2, "me", 30) is None


def test_leases_without_a_result_are_counted_until_there_is_one(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    fruitless = []
    for n in range(3):
        grant = ledger.lease(job.id, 0, f"w{n}", 30)
        assert grant is not None
        fruitless.append(grant.fruitless)
        if n == 1:
            ledger.beat(job.id, 0, "w1", 30, done=[(0, row("a"))])
        assert ledger.release(job.id, 0, f"w{n}")

    assert fruitless == [1, 2, 1]


def test_an_attempt_that_was_nobodys_fault_does_not_count(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    for n in range(4):
        grant = ledger.lease(job.id, 0, f"w{n}", 30)
        assert grant is not None
        assert (grant.attempts.get(0, 0), grant.fruitless) == (0, 1)
        ledger.beat(job.id, 0, f"w{n}", 30, start=[0])
        ledger.release(job.id, 0, f"w{n}", blameless=True, uncounted=[0])


def test_a_worker_that_lost_its_chunk_while_redis_was_away_takes_its_attempts_back(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "away", 0.01)
    ledger.beat(job.id, 0, "away", 0.01, start=[0])
    time.sleep(0.05)
    ledger.sweep(job.id, queue_empty=True)

    assert not ledger.release(job.id, 0, "away", uncounted=[0])
    ledger.absolve(job.id, 0, [0, 1])
    ledger.absolve(job.id, 0, [0])

    grant = ledger.lease(job.id, 0, "next", 30)
    assert grant is not None
    assert grant.attempts == {0: 0}


def test_the_death_of_a_process_suspects_what_it_had_in_hand_and_nothing_else(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=2)
    ledger.lease(job.id, 0, "w@host:7:a", 30)
    ledger.beat(job.id, 0, "w@host:7:a", 30, start=[0, 1])
    ledger.beat(job.id, 0, "w@host:7:a", 30, start=[1])  # as if the reply had been lost
    assert ledger.died("w@host:7", "signal 9") == [(job.id, 0)]
    ledger.lease(job.id, 0, "w@host:8:b", 30)
    ledger.beat(job.id, 0, "w@host:8:b", 30, start=[0])
    ledger.beat(job.id, 0, "w@host:8:b", 30, start=[2], done=[(0, row("a"))])
    ledger.lease(job.id, 1, "w@host:81:c", 30)

    assert ledger.died("w@host:8", "signal 11") == [(job.id, 0)]
    assert ledger.died("w@host:8", "signal 11") == []

    grant = ledger.lease(job.id, 0, "next", 30)
    assert grant is not None
    assert grant.attempts == {0: 2, 1: 2, 2: 1}
    assert grant.faults == {0: 1, 1: 1, 2: 1}  # 0 is done by now; 1 was not begun a second time
    assert grant.reasons == {0: "signal 9", 1: "signal 9", 2: "signal 11"}
    assert ledger.lease(job.id, 1, "thief", 30) is None


def test_an_expired_lease_is_found_however_many_chunks_wait(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=1200)
    ledger._redis.do("zadd", f"vdsr:{{{job.id}}}:open", {str(n): time.time() - 100 for n in range(1200)})
    ledger.lease(job.id, 1150, "dead", 0.01)
    time.sleep(0.05)

    assert ledger.sweep(job.id, queue_empty=False) == ["1150"]
    assert len(ledger.sweep(job.id, queue_empty=True)) == 1000
    assert len(ledger.sweep(job.id, queue_empty=True)) == 199


def test_a_chunk_whose_message_is_gone_is_queued_again_though_others_wait(ledger: Ledger, job: Job) -> None:
    plan(ledger, job, chunks=4)
    key = f"vdsr:{{{job.id}}}:open"
    ledger._redis.do("zadd", key, {str(n): time.time() - 1 for n in range(3)})  # the fourth is not due yet
    ledger.lease(job.id, 1, "mine", 30)

    assert ledger.lost(job.id, {"0"}) == ["2"]
    assert ledger.lost(job.id, {"0"}) == []  # for a while


def test_an_ended_job_keeps_its_state_when_it_is_cancelled(ledger: Ledger, job: Job) -> None:
    ledger.stop(job.id, State.FAILED, "no bucket")

    assert ledger.stop(job.id, State.CANCELLED) is State.FAILED
    assert ledger.record(job.id).error == "no bucket"


def test_a_dead_workers_chunk_does_not_keep_a_cancelled_job_open(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "dead", 0.01)
    ledger.stop(job.id, State.CANCELLED)
    time.sleep(0.05)

    assert set(ledger.sweep(job.id, queue_empty=True)) == {"finish", "0"}
    assert ledger.lease(job.id, 0, "new", 30).drain
    ledger.commit(job.id, 0, "new", [], low_water=0)
    assert ledger.finish(job.id) is State.CANCELLED


def failed_once(ledger: Ledger, job: Job) -> Record:
    """A completed job of a good and a bad image."""
    plan(ledger, job)
    ledger.lease(job.id, 0, "me", 30)
    ledger.commit(job.id, 0, "me", [row("a"), row("b", "failed", "empty")], low_water=0)
    ledger.finish(job.id)
    return ledger.record(job.id)


def test_a_failure_is_taken_back_when_its_image_is_done_again(ledger: Ledger, job: Job) -> None:
    record = failed_once(ledger, job)
    assert ledger.reopen(record, 1)
    assert not ledger.reopen(record, 1)

    assert ledger.record(job.id).state is State.RUNNING
    assert ledger.record(job.id).counters["failed"] == 1
    ledger.lease(job.id, 1, "me", 30)
    ledger.beat(job.id, 1, "me", 30, done=[(0, row("b"))], again={"b": "empty"})
    assert ledger.record(job.id).counters["failed"] == 0
    assert ledger.commit(job.id, 1, "me", [row("b")], low_water=0, again={"b": "empty"}) == "finish"
    assert ledger.finish(job.id) is State.COMPLETED
    counters = ledger.record(job.id).counters
    assert (counters["images"], counters["done"], counters["failed"], counters["fail:empty"]) == (2, 2, 0, 0)
    assert counters["done_bytes"] == 200


def test_a_cancelled_retry_leaves_the_failures_that_it_did_not_reach(ledger: Ledger, job: Job) -> None:
    ledger.reopen(failed_once(ledger, job), 1)

    ledger.stop(job.id, State.CANCELLED)

    assert ledger.finish(job.id) is State.CANCELLED
    assert ledger.record(job.id).counters["fail:empty"] == 1


def test_the_time_between_an_end_and_a_retry_does_not_count(ledger: Ledger, job: Job) -> None:
    record = failed_once(ledger, job)
    time.sleep(1.1)
    ledger.reopen(record, 1)

    assert ledger.record(job.id).seconds == pytest.approx(record.seconds, abs=0.2)
    ledger.lease(job.id, 1, "me", 30)
    time.sleep(0.3)
    assert record.seconds + 0.2 < ledger.record(job.id).seconds < record.seconds + 1


def test_an_ended_job_expires_and_a_reopened_one_does_not(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "me", 30)
    bad = row("b", "failed", "empty")
    ledger.commit(job.id, 0, "me", [bad], low_water=0)
    ledger.finish(job.id)
    key = f"vdsr:{{{job.id}}}:job"

    assert ledger._redis.do("ttl", key) > 29 * 24 * 3600
    ledger.reopen(ledger.record(job.id), 1)
    assert ledger._redis.do("ttl", key) == -1


def test_an_unknown_job_is_not_found(ledger: Ledger) -> None:
    for ask in (ledger.record, lambda i: ledger.stop(i, State.CANCELLED)):
        with pytest.raises(NotFound, match="nonsense"):
            ask("nonsense")
    assert ledger.lease("nonsense", 0, "me", 30) is None


def elsewhere(job: Job, destination: str, scale: float = 2) -> Job:
    """Another job, to a place that is said from this one's."""
    options = dataclasses.replace(job.options, scale=scale)
    return dataclasses.replace(job, id=new_job_id(), destination=job.destination + destination, options=options)


def ended(ledger: Ledger, job: Job) -> None:
    ledger.stop(job.id, State.CANCELLED)
    assert ledger.finish(job.id) is State.CANCELLED


def test_the_same_job_twice_is_one(ledger: Ledger, job: Job) -> None:
    twin = elsewhere(job, "")

    assert ledger.create(twin) == job.id

    with pytest.raises(NotFound):
        ledger.record(twin.id)
    ended(ledger, job)
    assert ledger.create(twin) == twin.id


@pytest.mark.parametrize("destination", ["", "/inside", "/.."])
def test_another_job_may_not_write_to_the_place_of_an_open_one(ledger: Ledger, job: Job, destination: str) -> None:
    other = elsewhere(job, destination, scale=3)
    if destination == "/..":
        other = dataclasses.replace(other, destination=job.destination.rpartition("/")[0])

    with pytest.raises(DestinationTaken, match=job.id):
        ledger.create(other)

    assert ledger.record(job.id).state is State.QUEUED
    assert other.id not in ledger.job_ids()
    ended(ledger, job)
    assert ledger.create(other) == other.id


@pytest.mark.parametrize("destination", ["-b", "b"])
def test_a_name_that_only_begins_alike_is_another_place(ledger: Ledger, job: Job, destination: str) -> None:
    other = elsewhere(job, destination, scale=3)

    assert ledger.create(other) == other.id


def test_single_files_of_one_folder_are_different_places(ledger: Ledger, job: Job) -> None:
    one, two = (dataclasses.replace(elsewhere(job, "-files"), only=(name, f"{name}-x2")) for name in ("a.png", "b.png"))

    assert [ledger.create(one), ledger.create(two)] == [one.id, two.id]


def test_a_retry_waits_for_whoever_writes_there_now(ledger: Ledger, job: Job) -> None:
    plan(ledger, job)
    ledger.lease(job.id, 0, "me", 30)
    ledger.commit(job.id, 0, "me", [row("a"), row("b", "failed", "empty")], low_water=0)
    ledger.finish(job.id)
    other = elsewhere(job, "", scale=3)
    ledger.create(other)

    with pytest.raises(DestinationTaken, match=other.id):
        ledger.reopen(ledger.record(job.id), 1)

    ended(ledger, other)
    assert ledger.reopen(ledger.record(job.id), 1)
    with pytest.raises(DestinationTaken, match=job.id):
        ledger.create(elsewhere(job, "", scale=3))


def test_a_place_is_free_once_its_job_is_forgotten(ledger: Ledger, job: Job, quiet_redis_url: str) -> None:
    ledger._redis.do("delete", f"vdsr:{{{job.id}}}:job")

    other = elsewhere(job, "", scale=3)
    assert ledger.create(other) == other.id


def test_a_job_that_is_restored_twice_for_a_lost_reply_is_restored(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(ledger, job)
    rest = Unfinished(2, "c", listed=True, done=(0,), left=(1,), counters={"images": 4, "done": 2})
    with monkeypatch.context() as patched:
        patched.setattr("worker.ledger.secrets.token_hex", lambda size: "same")  # of one call that is repeated
        ledger.restore(job, rest)
        ledger.restore(job, rest)

    record = ledger.record(job.id)
    assert (record.state, record.planned, record.chunks_done) == (State.RUNNING, 2, 1)
    assert record.counters == {"images": 4, "done": 2}
    assert ledger.lease(job.id, 0, "me", 30) is None
    assert ledger.lease(job.id, 1, "me", 30)
    with pytest.raises(DestinationTaken, match=job.id):
        ledger.restore(job, rest)


def test_a_job_that_could_not_be_begun_leaves_nothing(ledger: Ledger, job: Job) -> None:
    ledger.forget(job)

    assert job.id not in ledger.job_ids()
    assert job.id not in ledger.active()
    other = elsewhere(job, "", scale=3)
    assert ledger.create(other) == other.id
