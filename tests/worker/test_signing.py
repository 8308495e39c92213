"""Whose weights does a worker load? Those that somebody has signed whom it trusts, if it was told whom to trust."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from helpers import make_weights, published, vdsr

from vdsr import checkpoint
from vdsr.upscale import Upscaler
from worker.errors import UsageError
from worker.jobs import Job, Model, Options
from worker.models import Models, find_weights
from worker.registry import PRODUCTION, Registry
from worker.settings import Settings, load_settings
from worker.signing import Untrusted, make_key, trusted_keys


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "release.key")
    return tmp_path / "release.key"


@pytest.fixture
def settings(tmp_path: Path, key: Path) -> Settings:
    """Of a worker that trusts this key."""
    return load_settings(
        {"VDSR_STATE_DIR": str(tmp_path / "state"), "VDSR_REGISTRY": str(tmp_path / "models"),
         "VDSR_MODEL_KEYS": f"{key}.pub", "VDSR_DEVICE": "cpu"}
    )  # fmt: skip


def signing(settings: Settings, key: Path) -> Registry:
    """As a publisher with a key opens it."""
    return Registry(dataclasses.replace(settings, model_sign_key=key))


def test_a_signed_version_is_used_and_an_unsigned_one_is_not(settings: Settings, key: Path) -> None:
    signed = published(signing(settings, key), "signed", 1)
    unsigned = published(Registry(settings), "unsigned", 2)

    assert find_weights(Model("signed", signed.sha256), settings)[0] == make_weights(1, "signed")
    with pytest.raises(Untrusted, match=r"'unsigned' .* is not trusted: nobody in VDSR_MODEL_KEYS has signed it"):
        find_weights(Model("unsigned", unsigned.sha256), settings)
    assert Registry(dataclasses.replace(settings, model_keys=None)).weights(unsigned) == make_weights(2, "unsigned")


def test_a_signature_by_a_stranger_counts_for_nothing(settings: Settings, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger.key")
    version = published(signing(settings, tmp_path / "stranger.key"), "theirs")
    with pytest.raises(Untrusted, match="nobody in VDSR_MODEL_KEYS"):
        Registry(settings).weights(version)


def test_a_signature_does_not_vouch_for_other_weights_or_another_name(settings: Settings, key: Path) -> None:
    good = published(signing(settings, key), "good", 1)
    bad = published(Registry(settings), "bad", 2)
    registry = Registry(settings)
    (signature,) = Path(registry.uri, "versions/good/signatures").iterdir()
    registry.storage.write(f"versions/bad/signatures/{signature.name}", signature.read_bytes())
    with pytest.raises(Untrusted, match="is not of these weights under this name"):
        registry.weights(bad)
    # Whoever may write there changes weights and record together: the checksum holds, and the signature does not.
    forged = make_weights(3, "good")
    registry.storage.write("versions/good/weights.safetensors", forged)
    record = json.loads(registry.storage.read("versions/good/version.json"))
    record["sha256"] = hashlib.sha256(forged).hexdigest()
    registry.storage.write("versions/good/version.json", json.dumps(record).encode())
    assert registry.version("good").sha256 != good.sha256
    with pytest.raises(Untrusted, match="is not of these weights under this name"):
        registry.weights(registry.version("good"))


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"signature": "!"}', b'{"signature": 5}', b"[]", b'"x"'])
def test_a_damaged_signature_is_none(settings: Settings, key: Path, damage: bytes) -> None:
    version = published(signing(settings, key), "v")
    (path,) = Path(settings.registry, "versions/v/signatures").iterdir()
    path.write_bytes(damage)
    with pytest.raises(Untrusted):
        Registry(settings).weights(version)


def test_a_running_worker_refuses_an_unsigned_promotion_and_goes_on_with_the_last_signed_one(
    settings: Settings, key: Path
) -> None:
    registry = signing(settings, key)
    registry.promote(published(registry, "first", 1), over=None)
    refused: list[tuple[str, str]] = []
    models = Models(settings, lambda data: Upscaler(data, device="cpu"), on_refused=lambda *why: refused.append(why))
    job = Job("j", "/in", "/out", Options(), Model("x", "x"), follow=True)
    first = models.for_job(job, registry.alias(PRODUCTION).serial)  # type: ignore[union-attr]

    unsigned = published(Registry(settings), "second", 2)
    moved = registry.promote(unsigned, over=registry.alias(PRODUCTION))

    assert models.for_job(job, moved.serial) is first
    assert [version for version, _ in refused] == ["second"]
    assert "is not trusted" in refused[0][1]
    registry.sign(unsigned, key)
    again = registry.promote(unsigned, over=registry.alias(PRODUCTION))
    assert models.for_job(job, again.serial) is not first


def test_the_weights_that_ship_need_no_signature(settings: Settings) -> None:
    identity = checkpoint.identify()
    assert find_weights(Model(identity.version, identity.sha256), settings) == (checkpoint.SHIPPED, None)


def test_several_keys_may_stand_one_behind_the_other(settings: Settings, key: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "next.key")
    both = tmp_path / "both.pub"
    both.write_bytes(Path(f"{key}.pub").read_bytes() + (tmp_path / "next.key.pub").read_bytes())
    version = published(signing(settings, tmp_path / "next.key"), "v")
    assert Registry(dataclasses.replace(settings, model_keys=both)).weights(version)
    assert len(trusted_keys(both)) == 2


@pytest.mark.parametrize(
    "content", [None, b"", b"ssh-ed25519 AAAA", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
)
def test_trust_that_cannot_be_read_trusts_nobody(settings: Settings, tmp_path: Path, content: bytes | None) -> None:
    version = published(Registry(dataclasses.replace(settings, model_keys=None)), "v")
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="VDSR_MODEL_KEYS"):
        Registry(dataclasses.replace(settings, model_keys=path)).weights(version)


@pytest.mark.faults
def test_commands_make_a_key_sign_verify_and_refuse(tmp_path: Path) -> None:
    registry = {"VDSR_REGISTRY": str(tmp_path / "models"), "VDSR_STATE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    state = {**os.environ, **registry}
    keygen = vdsr(state, "models", "keygen", str(tmp_path / "k"))
    again = vdsr(state, "models", "keygen", str(tmp_path / "k"))
    trusting = {**state, "VDSR_MODEL_KEYS": str(tmp_path / "k.pub")}
    (tmp_path / "w.safetensors").write_bytes(make_weights(1, "v1"))

    unsigned = vdsr(trusting, "models", "publish", str(tmp_path / "w.safetensors"), "--promote")
    before = vdsr(trusting, "models", "verify")
    signed = vdsr(state, "models", "sign", "v1", "--sign-key", str(tmp_path / "k"))
    after = vdsr(trusting, "models", "verify", "v1")
    promoted = vdsr(trusting, "models", "promote", "v1")

    assert (keygen.returncode, again.returncode) == (0, 2)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert unsigned.returncode == 2
    assert "is not trusted" in unsigned.stderr
    assert (before.returncode, before.stdout.count("not trusted")) == (3, 1)
    assert (signed.returncode, after.returncode, promoted.returncode) == (0, 0, 0), promoted.stderr
    signer = keygen.stderr.split()[1].rstrip(":")
    assert after.stdout == f"v1: good, signed by {signer}\n"
