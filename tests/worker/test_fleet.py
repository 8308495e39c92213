"""The fleet: who lives, and what has been announced."""

from __future__ import annotations

import json
import secrets

import pytest

from worker.app import Queue, make_app, members
from worker.errors import BrokerUnreachable
from worker.fleet import Fleet
from worker.settings import load_settings

pytestmark = pytest.mark.redis


@pytest.fixture
def fleet(quiet_redis_url: str) -> Fleet:
    return Fleet(quiet_redis_url)


def test_a_redis_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(BrokerUnreachable, match=r"redis://user:\*\*\*@localhost:1/0") as caught:
        Fleet("redis://user:secret@localhost:1/0").ping()

    assert "secret" not in str(caught.value)


def test_workers_are_seen_while_they_report_and_by_the_queues_they_serve(fleet: Fleet) -> None:
    name = secrets.token_hex(4)
    fleet.report_worker(name, ["upscale", "other"])
    assert name in fleet.workers("upscale")
    assert name in fleet.workers("other")
    assert name not in fleet.workers("train")

    fleet.forget_worker(name, ["upscale", "other"])
    assert name not in fleet.workers("upscale")


def test_a_late_announcement_of_an_older_promotion_changes_nothing(fleet: Fleet) -> None:
    now = int(fleet._redis.do("hget", "vdsr:promoted", "serial") or 0) + 10

    assert fleet.announce(now, "new")
    assert not fleet.announce(now - 5, "late")

    assert fleet._redis.do("hget", "vdsr:promoted", "version") == "new"


def test_a_refusal_is_told_until_the_next_promotion(fleet: Fleet) -> None:
    serial = int(fleet._redis.do("hget", "vdsr:promoted", "serial") or 0) + 1
    fleet.announce(serial, "bad")
    fleet.report_refusal("bad", "node7: the weights are damaged")
    assert fleet.refusals() == {"bad": "node7: the weights are damaged"}

    fleet.announce(serial + 1, "good")
    assert fleet.refusals() == {}


def test_messages_tell_what_they_name_and_the_urgent_come_first(quiet_redis_url: str, fleet: Fleet) -> None:
    settings = load_settings({"VDSR_REDIS_URL": quiet_redis_url})
    queue, job_id = Queue(settings), secrets.token_hex(4)
    before = fleet.queue_length("upscale")

    queue.upscale(job_id, 7)
    queue.upscale(job_id, 8, again=True)
    for member in ("plan", "finish", "9"):
        queue.member(job_id, member)

    assert members(fleet.messages("upscale"))[job_id] == {"7", "8", "9", "plan", "finish"}
    assert fleet.queue_length("upscale") == before + 5
    assert int(fleet._redis.do("llen", "vdsr:upscale\x06\x163")) >= 1
    with make_app(settings).connection() as connection:  # as a worker takes them
        taken = [connection.default_channel.basic_get("upscale") for _ in range(before + 5)]
    assert [json.loads(message.body)[0] for message in taken if job_id in str(message.body)][-1] == [job_id, 7]


@pytest.mark.redis
def test_of_workers_that_died_at_work_none_counts_as_busy_for_long(quiet_redis_url: str) -> None:
    fleet = Fleet(quiet_redis_url)
    fleet.report_worker("one@here", ["busy-queue"], {"busy-queue"})
    fleet.report_worker("two@here", ["busy-queue"], {"busy-queue"})

    fleet.report_worker("two@here", ["busy-queue"])

    assert fleet._redis.do("zrange", "vdsr:busy:busy-queue", 0, -1) == ["one@here"]
    assert 0 < fleet._redis.do("ttl", "vdsr:busy:busy-queue") <= 30
