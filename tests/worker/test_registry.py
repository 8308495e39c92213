"""The registry: versions that never change, aliases that only one of two can move."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import make_weights, published

from vdsr import checkpoint, smoke
from vdsr.errors import CheckpointError
from vdsr.model import VDSR
from vdsr.upscale import Upscaler
from worker.errors import NotFound, UsageError
from worker.registry import CANDIDATE, PRODUCTION, AliasMoved, Registry, Version, VersionExists
from worker.settings import load_settings


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "local":
        return Registry(load_settings({"VDSR_REGISTRY": str(tmp_path / "models")}))
    bucket = request.getfixturevalue("bucket")
    endpoint = request.getfixturevalue("s3_server").endpoint_url
    return Registry(
        load_settings({"VDSR_REGISTRY": f"s3://{bucket}/{tmp_path.name}", "VDSR_S3_ENDPOINT_URL": endpoint})
    )


def test_an_empty_registry_has_no_versions_and_no_aliases(registry: Registry) -> None:
    assert registry.versions() == ([], {})
    assert registry.alias(PRODUCTION) is None
    with pytest.raises(NotFound, match="no production model"):
        registry.version(PRODUCTION)


def test_a_published_version_can_be_read_back_and_verified(registry: Registry) -> None:
    version = published(registry, "v1")

    assert registry.versions() == ([version], {})
    assert registry.version("v1") == version
    assert checkpoint.identify_bytes(registry.weights(version), "v1").sha256 == version.sha256
    smoke.check(Upscaler(registry.weights(version)), version.smoke)


def test_publishing_the_same_again_changes_nothing_and_other_weights_are_refused(registry: Registry) -> None:
    first = published(registry, "v1")

    assert published(registry, "v1").created == first.created
    with pytest.raises(VersionExists, match="other weights named 'v1'"):
        published(registry, "v1", seed=2)
    assert registry.version("v1") == first


@pytest.mark.parametrize("name", ["", "production", "follow", "../x", "a/b", ".hidden", "한국", "x" * 101, "a b"])
def test_a_name_that_cannot_be_one_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a version"):
        registry.publish(b"", name=name, smoke="", metrics={})
    with pytest.raises(NotFound):
        registry.version(name)


def test_a_misspelt_version_is_met_with_a_suggestion(registry: Registry) -> None:
    published(registry, "autumn-1")

    with pytest.raises(NotFound, match="did you mean 'autumn-1'"):
        registry.version("autum-1")


def test_promotions_can_be_taken_back_one_by_one(registry: Registry) -> None:
    one, two, three = (published(registry, f"v{n}", n) for n in (1, 2, 3))
    serials = []
    for version in (one, two, three):
        serials.append(registry.promote(version, over=registry.alias(PRODUCTION)).serial)

    assert registry.version(PRODUCTION) == three
    for expected in (two, one):
        alias = registry.rollback()
        serials.append(alias.serial)
        assert registry.version(PRODUCTION) == expected
    assert serials == sorted(set(serials))
    with pytest.raises(UsageError, match="no version before"):
        registry.rollback()


def test_a_rollback_to_a_damaged_version_is_refused(registry: Registry) -> None:
    for n in (1, 2):
        registry.promote(published(registry, f"v{n}", n), over=registry.alias(PRODUCTION))
    registry.storage.write("versions/v1/weights.safetensors", b"")

    with pytest.raises(CheckpointError, match="damaged"):
        registry.rollback()
    assert registry.version(PRODUCTION).name == "v2"


def test_what_was_decided_on_an_alias_that_has_moved_does_not_count(registry: Registry) -> None:
    one, two, three = (published(registry, f"v{n}", n) for n in (1, 2, 3))
    seen = registry.promote(one, over=None)
    seen = registry.alias(PRODUCTION) or seen
    registry.promote(two, over=seen)

    with pytest.raises(AliasMoved, match="production was set to v2"):
        registry.promote(three, over=seen)
    with pytest.raises(AliasMoved):
        registry.promote(three, over=None)
    assert registry.version(PRODUCTION) == two


def test_of_many_publishers_at_once_exactly_one_wins(registry: Registry) -> None:
    versions = [published(registry, f"v{n}", n) for n in range(1, 7)]
    registry.promote(versions[0], over=None)
    seen = registry.alias(PRODUCTION)
    won: list[str] = []
    start = threading.Barrier(5)

    def race(version: Version) -> None:
        start.wait()
        with suppress(AliasMoved):
            won.append(registry.promote(version, over=seen).version)

    threads = [threading.Thread(target=race, args=(version,)) for version in versions[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    alias = registry.alias(PRODUCTION)
    assert alias is not None
    assert alias.version == won[0]
    assert alias.history == ("v1",)


def test_damaged_weights_are_named_and_not_handed_out(registry: Registry) -> None:
    version = published(registry, "v1")
    key = "versions/v1/weights.safetensors"
    registry.storage.write(key, registry.storage.read(key)[:-1])

    with pytest.raises(CheckpointError, match=r"'v1'.*damaged"):
        registry.weights(version)


def test_a_damaged_record_costs_only_its_version(registry: Registry) -> None:
    version = published(registry, "v1")
    published(registry, "v2")
    registry.storage.write("versions/v2/version.json", b'{"name": "v2"')

    good, bad = registry.versions()

    assert good == [version]
    assert list(bad) == ["v2"]
    assert "damaged" in bad["v2"]


def test_an_interrupted_publication_is_no_version_and_can_be_made_good(registry: Registry) -> None:
    registry.storage.create("versions/v1/weights.safetensors", make_weights(1, "v1"))
    assert registry.versions() == ([], {})

    assert published(registry, "v1") == registry.version("v1")


def test_a_damaged_alias_is_told_with_its_remedy(registry: Registry) -> None:
    registry.promote(published(registry, "v1"), over=None, alias=CANDIDATE)
    registry.storage.write("aliases/candidate.json", json.dumps([1]).encode())

    with pytest.raises(CheckpointError, match=r"delete aliases/candidate\.json"):
        registry.alias(CANDIDATE)


def test_the_smoke_test_tells_a_wrong_network_from_a_right_one_in_any_precision() -> None:
    data = make_weights(1)
    recorded = smoke.record(Upscaler(data, device="cpu", precision="fp32"))

    for precision in ("fp32", "bf16", "auto"):
        smoke.check(Upscaler(data, device="cpu", precision=precision), recorded)
    torch.manual_seed(0)
    other = Upscaler(checkpoint.to_bytes(VDSR(), version="random"), device="cpu")
    with pytest.raises(CheckpointError, match="code values"):
        smoke.check(other, recorded)
    with pytest.raises(CheckpointError, match="damaged"):
        smoke.check(other, recorded[:-8])


def test_what_rounds_records_no_smoke_test() -> None:
    with pytest.raises(ValueError, match="precision='fp32'"):
        smoke.record(Upscaler(make_weights(1), device="cpu", precision="bf16", engine="torch"))
