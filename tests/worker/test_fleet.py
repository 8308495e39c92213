"""The fleet: who lives, and what has been announced."""

from __future__ import annotations

import secrets

import pytest

from worker.errors import BrokerUnreachable
from worker.fleet import Fleet

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
