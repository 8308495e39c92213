"""A worker's networks: pinned ones, followed ones, bad ones that are refused, and old ones that leave memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import make_weights, published

from vdsr import checkpoint
from vdsr.errors import CheckpointError
from vdsr.upscale import Upscaler
from worker.errors import NotFound
from worker.jobs import Job, Model, Options
from worker.models import KEPT, Models, choose
from worker.registry import PRODUCTION, Registry, Version
from worker.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"VDSR_REGISTRY": str(tmp_path / "models"), "VDSR_STATE_DIR": str(tmp_path)})


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(settings)


@pytest.fixture
def refused() -> dict[str, str]:
    return {}


@pytest.fixture
def models(settings: Settings, refused: dict[str, str]) -> Models:
    return Models(settings, lambda data: Upscaler(data, device="cpu"), on_refused=refused.__setitem__)


def job(model: Version | None = None, *, follow: bool = False) -> Job:
    identity = model.model if model else checkpoint.identify()
    return Job("j", "/in", "/out", Options(), Model(identity.version, identity.sha256), follow=follow)


def promote(registry: Registry, version: Version) -> int:
    return registry.promote(version, over=registry.alias(PRODUCTION)).serial


def test_a_new_job_pins_what_is_in_use(settings: Settings, registry: Registry) -> None:
    shipped, version = checkpoint.identify(), published(registry, "v1")

    assert choose(None, settings) == (Model(shipped.version, shipped.sha256), False)
    assert choose("v1", settings) == (Model("v1", version.sha256), False)
    promote(registry, version)
    assert choose(None, settings) == (Model("v1", version.sha256), False)
    assert choose("follow", settings) == (Model("v1", version.sha256), True)
    assert choose("shipped", settings) == (Model(shipped.version, shipped.sha256), False)
    with pytest.raises(NotFound, match="no version 'v2'"):
        choose("v2", settings)


def test_named_weights_go_before_the_registry(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    promote(registry, published(registry, "v1"))
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(make_weights(5, "mine"))
    with_weights = load_settings({"VDSR_REGISTRY": settings.registry, "VDSR_WEIGHTS": str(mine)})

    assert choose(None, with_weights)[0].version == "mine"
    assert choose(PRODUCTION, with_weights)[0].version == "v1"


def test_a_pinned_job_keeps_its_model_whatever_is_promoted(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    serial = promote(registry, two)

    assert models.for_job(job(one), serial).identity.sha256 == one.sha256
    assert models.for_job(job(), serial).identity == checkpoint.identify()


def test_a_job_that_follows_uses_each_promotion_and_each_rollback(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    following = job(one, follow=True)
    used = [models.for_job(following, 0).identity.version]

    for version in (one, two):
        used.append(models.for_job(following, promote(registry, version)).identity.version)
    used.append(models.for_job(following, registry.rollback().serial).identity.version)

    assert used == ["v1", "v1", "v2", "v1"]


def test_what_redis_forgot_is_found_in_the_registry(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    promote(registry, two)

    assert models.for_job(job(one, follow=True), 0).identity.version == "v2"


def test_a_noticed_promotion_is_loaded_while_the_old_model_serves(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    following = job(follow=True)
    models.for_job(following, promote(registry, one))
    serial = promote(registry, two)

    models.notice(serial)
    for thread in threading.enumerate():
        if thread.name == "reload":
            thread.join()

    assert two.sha256 in models._loaded
    assert models.for_job(following, serial).identity.version == "v2"


def test_a_registry_that_is_slow_holds_up_neither_beats_nor_other_jobs(
    models: Models, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    models.for_job(job(one, follow=True), promote(registry, one))
    serial = promote(registry, two)
    waits = threading.Event()
    whole = Registry.weights

    def slow(self: Registry, version: Version) -> bytes:
        waits.wait(20)
        return whole(self, version)

    monkeypatch.setattr(Registry, "weights", slow)
    models.notice(serial)
    started = time.monotonic()
    for _ in range(3):
        models.notice(serial)
    assert models.for_job(job(one), serial).identity.version == "v1"
    took = time.monotonic() - started
    waits.set()
    assert models._thread is not None
    models._thread.join()

    assert took < 5
    assert models.for_job(job(one, follow=True), serial).identity.version == "v2"


def test_an_alias_read_from_a_stale_cache_is_read_again(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    following = job(one, follow=True)
    models.for_job(following, promote(registry, one))
    key = "aliases/production.json"
    stale = registry.storage.read(key)
    serial = promote(registry, two)
    fresh = registry.storage.read(key)
    registry.storage.write(key, stale)
    assert models.for_job(following, serial).identity.version == "v1"

    registry.storage.write(key, fresh)
    assert models.for_job(following, serial).identity.version == "v2"


@pytest.mark.parametrize("harm", ["cut", "other", "absent", "wrong output"])
def test_a_bad_promotion_is_refused_and_the_old_model_goes_on(
    models: Models, registry: Registry, refused: dict[str, str], harm: str
) -> None:
    good, bad = published(registry, "good"), published(registry, "bad", 2)
    following = job(good, follow=True)
    models.for_job(following, promote(registry, good))
    storage, key = registry.storage, "versions/bad/weights.safetensors"
    if harm == "cut":
        storage.write(key, storage.read(key)[:100_000])
    elif harm == "other":
        storage.write(key, make_weights(3, "bad"))
    elif harm == "absent":
        Path(storage.uri, key).unlink()
    else:
        record = "versions/bad/version.json"
        text = storage.read(record).decode().replace(bad.smoke, published(registry, "far", 900).smoke)
        storage.write(record, text.encode())

    used = models.for_job(following, promote(registry, bad))

    assert used.identity.version == "good"
    assert list(refused) == ["bad"]
    better = published(registry, "better", 4)
    assert models.for_job(following, promote(registry, better)).identity.version == "better"


def test_what_became_of_each_promotion_is_told(settings: Settings, registry: Registry) -> None:
    told: list[str] = []
    models = Models(settings, lambda data: Upscaler(data, device="cpu"), on_reload=told.append)
    following = job(follow=True)
    models.for_job(following, promote(registry, published(registry, "good")))
    serial = promote(registry, published(registry, "bad", 2))
    registry.storage.write("versions/bad/weights.safetensors", b"no weights")
    models.for_job(following, serial)
    registry.storage.write("aliases/production.json", b"no JSON")
    models.for_job(following, serial + 1)

    assert told == ["loaded", "refused", "unavailable"]


def test_a_worker_that_starts_under_a_bad_promotion_takes_the_last_good_one(
    models: Models, registry: Registry, refused: dict[str, str]
) -> None:
    good, bad = published(registry, "good"), published(registry, "bad", 2)
    promote(registry, good)
    serial = promote(registry, bad)
    Path(registry.uri, "versions/bad/weights.safetensors").unlink()

    assert models.for_job(job(bad, follow=True), serial).identity.version == "good"
    assert list(refused) == ["bad"]


def test_an_alias_that_cannot_be_read_is_looked_at_again(models: Models, registry: Registry) -> None:
    one, two = published(registry, "v1"), published(registry, "v2", 2)
    following = job(one, follow=True)
    models.for_job(following, promote(registry, one))
    serial = promote(registry, two)
    key = "aliases/production.json"
    whole = registry.storage.read(key)
    registry.storage.write(key, whole[:20])

    assert models.for_job(following, serial).identity.version == "v1"
    models.notice(serial)
    assert models._thread is None  # not at every beat

    registry.storage.write(key, whole)
    assert models.for_job(following, serial).identity.version == "v2"


def test_a_model_that_nobody_has_is_an_error_that_names_the_registry(models: Models, settings: Settings) -> None:
    stranger = Job("j", "/in", "/out", Options(), Model("stranger", "0" * 64))

    with pytest.raises(CheckpointError, match=f"registry {settings.registry}.*same VDSR_REGISTRY"):
        models.for_job(stranger, 0)


def test_a_version_of_the_same_name_and_other_weights_is_not_used(models: Models, registry: Registry) -> None:
    published(registry, "v1")

    with pytest.raises(CheckpointError, match="asks for 000000000000"):
        models.for_job(Job("j", "/in", "/out", Options(), Model("v1", "0" * 64)), 0)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_fifty_promotions_leave_no_memory_behind(models: Models, registry: Registry) -> None:
    versions = [published(registry, f"v{n}", n) for n in range(1, 6)]
    following = job(versions[0], follow=True)

    def promoted(count: int) -> int:
        for n in range(count):
            upscaler = models.for_job(following, promote(registry, versions[n % 5]))
            assert upscaler.identity.sha256 == versions[n % 5].sha256
        assert len(models._loaded) == KEPT
        return resident_bytes()

    before = promoted(15)  # allocators and caches fill up first
    after = promoted(50)

    # A network has 2.7 MB of weights: fifty that stayed would be 133 MB.
    assert after - before < 20e6, f"{(after - before) / 1e6:.1f} MB more after 50 promotions"


@pytest.mark.gpu
def test_fifty_promotions_leave_no_memory_behind_on_a_card(settings: Settings, registry: Registry) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    models = Models(settings, lambda data: Upscaler(data, device="cuda"))
    versions = [published(registry, f"v{n}", n) for n in range(1, 6)]
    following = job(versions[0], follow=True)

    def promoted(count: int) -> int:
        for n in range(count):
            models.for_job(following, promote(registry, versions[n % 5]))
        return torch.cuda.memory_allocated()

    before = promoted(10)
    assert promoted(50) <= before
