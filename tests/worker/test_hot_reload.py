"""Hot reload: running workers take up what is promoted, and no job's images are lost or mixed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Service, kill, make_photos, published, wait_until

from worker.jobs import Outcome
from worker.parts import Parts
from worker.registry import PRODUCTION, Registry, Version

pytestmark = [pytest.mark.redis, pytest.mark.s3]


@pytest.fixture
def registry(service: Service) -> Iterator[Registry]:
    """The service's registry, with nothing in production afterwards."""
    registry = Registry(service.settings)
    yield registry
    Path(registry.uri, "aliases/production.json").unlink(missing_ok=True)


def promote(service: Service, registry: Registry, version: Version) -> None:
    alias = registry.promote(version, over=registry.alias(PRODUCTION))
    service.client.fleet.announce(alias.serial, alias.version)


def rows_by_chunk(service: Service, job_id: str) -> list[list[Outcome]]:
    parts = Parts(service.client.ledger.record(job_id).job, service.settings)
    return [rows for _, rows in parts.all_results()]


def test_a_job_that_follows_uses_a_promotion_at_its_next_chunk_and_loses_nothing(
    service: Service, registry: Registry, tmp_path: Path
) -> None:
    one, two = published(registry, "reload-1", 11), published(registry, "reload-2", 12)
    promote(service, registry, one)
    photos = make_photos(tmp_path / "many", 400)

    follower = service.submit(photos, tmp_path / "follower", model="follow")
    pinned = service.submit(photos, tmp_path / "pinned", score=False)
    wait_until(lambda: service.client.ledger.record(follower).chunks_done >= 2)
    promote(service, registry, two)
    summaries = [service.wait(job_id) for job_id in (follower, pinned)]

    for summary in summaries:
        assert summary["images"]["done"] == 400
        assert summary["images"]["failed"] == 0
    chunks = rows_by_chunk(service, follower)
    assert all(len({row.model for row in rows}) == 1 for rows in chunks)
    used = [rows[0].model for rows in chunks]
    assert set(used) == {one.sha256, two.sha256}
    assert {row.model for row in service.rows(pinned).values()} == {one.sha256}


def test_an_idle_worker_uses_a_promotion_within_five_seconds_and_a_rollback_too(
    service: Service, registry: Registry, tmp_path: Path
) -> None:
    one, two = published(registry, "reload-1", 11), published(registry, "reload-2", 12)
    photo = make_photos(tmp_path / "single", 1)
    promote(service, registry, one)

    def used(name: str) -> set[str | None]:
        job_id = service.submit(photo, tmp_path / name, model="follow")
        service.wait(job_id)
        return {row.model for row in service.rows(job_id).values()}

    assert used("a") == {one.sha256}
    started = time.monotonic()
    promote(service, registry, two)
    assert used("b") == {two.sha256}
    assert time.monotonic() - started < 5
    alias = registry.rollback()
    service.client.fleet.announce(alias.serial, alias.version)
    assert used("c") == {one.sha256}


def test_a_new_job_pins_what_is_in_production_and_keeps_it_over_a_kill(
    service: Service, registry: Registry, tmp_path: Path
) -> None:
    one, two = published(registry, "reload-1", 11), published(registry, "reload-2", 12)
    promote(service, registry, one)
    photos = make_photos(tmp_path / "some", 200)

    job_id = service.submit(photos, tmp_path / "out")
    wait_until(lambda: service.client.ledger.record(job_id).chunks_done >= 1)
    promote(service, registry, two)
    for child in service.children():
        kill(child)
    summary = service.wait(job_id)

    assert summary["images"]["done"] == 200
    assert summary["model"] == {"version": "reload-1", "sha256": one.sha256}
    assert {row.model for row in service.rows(job_id).values()} == {one.sha256}


def test_a_bad_promotion_is_told_and_the_old_model_goes_on(
    service: Service, registry: Registry, tmp_path: Path
) -> None:
    good, bad = published(registry, "reload-1", 11), published(registry, f"bad-{tmp_path.name}", 13)
    promote(service, registry, good)
    photos = make_photos(tmp_path / "few", 3)
    service.run(photos, tmp_path / "before", model="follow")
    key = f"versions/{bad.name}/weights.safetensors"
    registry.storage.write(key, registry.storage.read(key)[:50_000])

    promote(service, registry, bad)
    job_id = service.submit(photos, tmp_path / "after", model="follow")
    summary = service.wait(job_id)

    assert summary["images"]["done"] == 3
    assert {row.model for row in service.rows(job_id).values()} == {good.sha256}
    assert "damaged" in service.client.fleet.refusals()[bad.name]


def test_a_promotion_that_redis_was_not_told_of_is_taken_up_all_the_same(
    service: Service, registry: Registry, tmp_path: Path
) -> None:
    one, two = published(registry, "reload-1", 11), published(registry, "reload-2", 12)
    promote(service, registry, one)
    photo = make_photos(tmp_path / "single", 1)
    service.run(photo, tmp_path / "before", model="follow")

    alias = registry.promote(two, over=registry.alias(PRODUCTION))  # and the publisher dies

    def told() -> bool:
        return int(service.client.fleet._redis.do("hget", "vdsr:promoted", "serial")) == alias.serial

    wait_until(told, seconds=60)
    job_id = service.submit(photo, tmp_path / "after", model="follow")
    service.wait(job_id)
    assert {row.model for row in service.rows(job_id).values()} == {two.sha256}
