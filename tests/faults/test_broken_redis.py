"""Redis that dies, is away, hangs, is cut off or full: jobs go on by themselves once it is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import make_photos, wait_until
from PIL import Image
from rig import Rig, rig
from tally import Tally, add, digests

from worker.errors import BrokerRefused
from worker.fleet import Fleet

pytestmark = [pytest.mark.redis]

AWAY_S = 60
RESUMED_S = 150
"""Within this much of Redis' return, images are done again. It is half open connections that take longest: 15 s until
the child gives its own up, 15 for Celery's acknowledgement, and 30 until kombu misses the answer to its pop."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Rig]:
    """Two workers that reach Redis through a proxy."""
    with rig(["one", "two"], chunk_images=20) as made:
        yield made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So much work that the fault strikes in the midst of it."""
    return make_photos(tmp_path_factory.mktemp("source") / "photos", 240, size=(96, 80))


@pytest.fixture(scope="module")
def quiet(pair: Rig, photos: Path) -> dict[str, str]:
    """What a run without faults makes of it."""
    out = photos.with_name("quiet")
    assert pair.service.run(photos, out, score=False)["state"] == "completed"
    return digests(str(out), pair.service)


@pytest.mark.faults
def test_a_redis_that_is_killed_comes_back_with_all_it_knew(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "kill -9 of Redis, started again at once"

    def strike() -> None:
        pair.redis.kill()
        pair.redis.start()

    _assert_costs_time_only(strike, pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_a_redis_that_is_away_for_a_minute_costs_that_minute(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = f"Redis away for {AWAY_S} s"

    def strike() -> None:
        pair.redis.kill()
        time.sleep(AWAY_S)
        pair.redis.start()

    _assert_costs_time_only(strike, pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_a_redis_that_hangs_is_waited_for(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "Redis stalled (SIGSTOP) for 40 s"
    _assert_costs_time_only(lambda: pair.redis.stall(40), pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_connections_that_are_cut_half_open_are_given_up(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "connections to Redis half open"

    def strike() -> None:
        pair.redis_way.silence()
        pair.redis_way.restore(old=False)

    _assert_costs_time_only(strike, pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_a_network_that_is_gone_for_a_while_is_waited_for(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "no way to Redis for 30 s"

    def strike() -> None:
        pair.redis_way.silence()
        time.sleep(30)
        pair.redis_way.restore()

    _assert_costs_time_only(strike, pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_a_redis_that_is_full_says_so_and_the_job_goes_on_once_it_has_room(
    pair: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    tally.fault = "Redis full (maxmemory, noeviction) for 30 s"
    fleet = Fleet(pair.redis.url)

    def strike() -> None:
        fleet._redis.do("config_set", "maxmemory", 1)
        with pytest.raises(BrokerRefused, match="maxmemory"):
            pair.service.submit(photos, tmp_path / "other")
        began = time.monotonic()
        while time.monotonic() - began < 30:
            _supervise(pair)
            time.sleep(1)
        assert any("maxmemory" in node.text() for node in pair.nodes)
        fleet._redis.do("config_set", "maxmemory", 0)

    _assert_costs_time_only(strike, pair, photos, quiet, tmp_path, tally)


@pytest.mark.faults
def test_an_image_in_hand_while_redis_was_away_is_not_held_for_what_killed_its_worker(
    pair: Rig, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.effect_noise((3000, 2500), 60).save(tmp_path / "in" / "slow.png")
    for node in pair.nodes:
        pair.wait_for(node)
    job_id = pair.service.submit(tmp_path / "in", tmp_path / "out", score=False)
    wait_until(lambda: pair.progress(job_id).get("try:0") == "1", 120)
    first = pair.leases(job_id)

    pair.redis.kill()
    time.sleep(45)  # longer than any repetition of a command
    pair.redis.start()
    wait_until(lambda: pair.leases(job_id).keys() == first.keys() and pair.leases(job_id) != first, RESUMED_S)
    time.sleep(10)
    attempts = pair.progress(job_id)["try:0"]

    pair.service.client.cancel(job_id)
    wait_until(lambda: not pair.service.client.ledger.is_open(job_id), 60)
    assert attempts in ("0", "1")  # the second one, begun or not; the first is taken back


def _assert_costs_time_only(
    strike: Callable[[], None], fleet: Rig, photos: Path, quiet: dict[str, str], tmp_path: Path, tally: Tally
) -> None:
    """A job with a fault in its midst, against one without."""
    for node in fleet.nodes:
        fleet.wait_for(node)
    job_id = fleet.service.submit(photos, tmp_path / "out", score=False)
    wait_until(lambda: fleet.counted(job_id) >= 40, 120)

    strike()
    tally.runs += 1
    back, before = time.monotonic(), fleet.counted(job_id)
    assert before < 240, "the job was over before the fault"

    def resumed() -> bool:
        _supervise(fleet)
        return fleet.counted(job_id) > before + 20  # more than what was in hand

    wait_until(resumed, RESUMED_S)
    tally.recovery_s.append(time.monotonic() - back)
    summary = fleet.service.wait(job_id, patience_s=30)

    assert summary["images"] == {"total": 240, "done": 240, "failed": 0, "skipped": 0, "ignored": 0}
    add(tally, fleet.service, job_id, quiet, {})
    assert tally.clean, tally


def _supervise(fleet: Rig) -> None:
    """Workers may end when Redis refuses them; docs/operations.md wants somebody to start them again."""
    for node in fleet.nodes:
        if node.ended:
            node.start()
