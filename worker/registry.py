"""Where do published models lie, and which of them is in use? In any storage; no database, no lock server.

    versions/NAME/weights.safetensors   created once
    versions/NAME/version.json          created once, last: a version without it does not exist
    versions/NAME/signatures/           who vouches for it (worker.signing)
    aliases/production.json             the version in use, and those before it; changed by compare-and-swap only
    aliases/candidate.json              the version that was published last without being promoted

An alias's serial number only grows. Redis announces that of `production` to the workers (worker.ledger); what counts
is what lies here.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
import platform
import re
import time
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vdsr import checkpoint
from vdsr.errors import CheckpointError, VdsrError
from worker import signing
from worker.errors import NotFound, ObjectNotFound, UsageError
from worker.settings import Settings
from worker.storage import Storage
from worker.uris import Place, open_storage, resolve

PRODUCTION, CANDIDATE = "production", "candidate"
SHIPPED, FOLLOW = "shipped", "follow"
RESERVED = (PRODUCTION, CANDIDATE, SHIPPED, FOLLOW)
"""Names with a meaning of their own where a version is expected."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEPT = 50
"""Versions that an alias remembers for rollbacks."""


class AliasMoved(VdsrError):
    """Somebody else changed the alias between our look and our change; nothing was changed by us."""


class VersionExists(UsageError):
    """Another model has this name already; versions never change."""


@dataclass(frozen=True)
class Version:
    """A published model."""

    name: str
    sha256: str
    size_bytes: int
    created: str
    """UTC, as 2026-11-23T05:00:00Z."""
    card: dict[str, str]
    """The header of the weights: recipe, data, command, ..."""
    metrics: dict[str, Any]
    """psnr_y: scale -> {bicubic, vdsr} in dB; validation: digest of the images they were measured on."""
    smoke: str
    """Its output on a known tile (vdsr.smoke)."""

    @property
    def model(self) -> checkpoint.Identity:
        """Which weights these are."""
        return checkpoint.Identity(self.name, self.sha256)


@dataclass(frozen=True)
class Alias:
    """A name that points to a version."""

    name: str
    version: str
    sha256: str
    serial: int
    """Grows with every change; at least the Unix time in ms, so that a registry that was made anew goes on above."""
    changed: str
    by: str
    history: tuple[str, ...]
    """Versions before this one, the latest last."""
    tag: str = dataclasses.field(default="", compare=False)
    """The storage's, for the compare-and-swap."""


class Registry:
    """The models of one place."""

    def __init__(self, settings: Settings) -> None:
        self.uri = resolve(settings.registry, settings, beside=Place("file", "", "/")).uri
        self.storage: Storage = open_storage(self.uri, settings)
        self._keys, self._sign_key = settings.model_keys, settings.model_sign_key

    def publish(self, data: bytes, *, name: str, smoke: str, metrics: dict[str, Any]) -> Version:
        """Add a version; the same again changes nothing.

        Args:
            data: a checkpoint that was loaded and tried.

        Raises:
            UsageError: no possible name.
            VersionExists: other weights have that name.
        """
        check_name(name)
        version = Version(
            name=name,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            created=_now(),
            card=checkpoint.card_of(data, name),
            metrics=metrics,
            smoke=smoke,
        )
        weights = _weights_key(name)
        # A publisher that was killed between the two may have left these very weights, or others that nobody can use.
        if not self.storage.create(weights, data) and self.storage.read(weights) != data:
            raise VersionExists(f"{self.uri} has other weights named {name!r}; choose another --version")
        if not self.storage.create(_version_key(name), _json(dataclasses.asdict(version))):
            version = self.version(name)
        if self._sign_key:
            self.sign(version, self._sign_key)
        return version

    def sign(self, version: Version, key_file: Path) -> str:
        """Vouch for a version by a private key; the key's fingerprint.

        Raises:
            CheckpointError: its weights are not what was published.
            UsageError: no usable key.
        """
        self._intact(version)
        return signing.sign(self.storage, version.name, version.sha256, key_file)

    def signer(self, version: Version) -> str | None:
        """Which trusted key has signed a version; None where none is asked for, and for the weights that ship.

        Raises:
            Untrusted: one is asked for, and none has.
        """
        if self._keys is None or version.sha256 == checkpoint.identify().sha256:
            return None
        return signing.check(self.storage, version.name, version.sha256, self._keys)

    def version(self, name: str) -> Version:
        """A version by its name, or by an alias.

        Raises:
            NotFound: there is none.
        """
        if name in (PRODUCTION, CANDIDATE):
            alias = self.alias(name)
            if alias is None:
                raise NotFound(f"{self.uri} has no {name} model yet; see 'vdsr models promote --help'")
            name = alias.version
        if not NAME.fullmatch(name):
            raise NotFound(f"{name!r} names no version; see 'vdsr models list'")
        try:
            return Version(**json.loads(self.storage.read(_version_key(name))))
        except ObjectNotFound as exc:
            near = get_close_matches(name, self.names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see 'vdsr models list'"
            raise NotFound(f"{self.uri} has no version {name!r}; {hint}") from exc
        except (ValueError, TypeError) as exc:
            raise CheckpointError(f"the record of version {name!r} in {self.uri} is damaged: {exc}") from exc

    def versions(self) -> tuple[list[Version], dict[str, str]]:
        """All versions, oldest first; and of those whose record is damaged, why."""
        good, bad = [], {}
        for name in self.names():
            try:
                good.append(self.version(name))
            except CheckpointError as exc:
                bad[name] = str(exc)
        return sorted(good, key=lambda version: (version.created, version.name)), bad

    def names(self) -> list[str]:
        """Of all versions, by name."""
        try:
            keys = [entry.key for entry in self.storage.entries()]
        except ObjectNotFound:  # nothing was ever published
            return []
        return sorted(key.split("/")[1] for key in keys if re.fullmatch(r"versions/[^/]+/version\.json", key))

    def weights(self, version: Version) -> bytes:
        """A version's checkpoint, its digest verified, and its signature where VDSR_MODEL_KEYS asks for one.

        Raises:
            CheckpointError: it is gone, not what was published, or by nobody who is trusted.
        """
        self.signer(version)
        return self._intact(version)

    def _intact(self, version: Version) -> bytes:
        try:
            data = self.storage.read(_weights_key(version.name))
        except ObjectNotFound as exc:
            raise CheckpointError(f"the weights of version {version.name!r} are gone from {self.uri}") from exc
        digest = hashlib.sha256(data).hexdigest()
        if digest != version.sha256:
            raise CheckpointError(
                f"the weights of version {version.name!r} in {self.uri} are damaged: SHA-256 {digest[:12]}, published "
                f"as {version.sha256[:12]}; publish them again under another name"
            )
        return data

    def weights_uri(self, version: Version) -> str:
        """Where a version's checkpoint lies."""
        return f"{self.uri.rstrip('/')}/{_weights_key(version.name)}"

    def alias(self, name: str) -> Alias | None:
        """Where an alias points; None if it was never set.

        Raises:
            CheckpointError: its record is damaged.
        """
        try:
            data, tag = self.storage.read_tagged(_alias_key(name))
        except ObjectNotFound:
            return None
        try:
            raw = json.loads(data)
            alias = Alias(**{**raw, "history": tuple(map(str, raw["history"])), "tag": tag})
            return dataclasses.replace(alias, version=str(alias.version), serial=int(alias.serial))
        except (ValueError, TypeError, KeyError) as exc:
            raise CheckpointError(
                f"the alias {name} in {self.uri} is damaged ({exc}); delete {_alias_key(name)} and promote again"
            ) from exc

    def promote(self, version: Version, *, over: Alias | None, alias: str = PRODUCTION) -> Alias:
        """Point an alias to a version.

        Args:
            over: the alias as the caller saw it, None if it was not there: what it decided on must still hold.

        Raises:
            AliasMoved: it does not.
        """
        history = (*over.history, over.version)[-KEPT:] if over else ()
        return self._point(alias, version, over, history)

    def rollback(self) -> Alias:
        """Point `production` to the version before.

        Raises:
            UsageError: there is none.
            CheckpointError: it is damaged.
            AliasMoved: somebody promoted meanwhile.
        """
        now = self.alias(PRODUCTION)
        if now is None or not now.history:
            raise UsageError(
                f"{self.uri} has no version before the one in production; "
                "'vdsr models promote shipped' goes back to the weights that ship"
            )
        before = self.version(now.history[-1])
        self.weights(before)
        return self._point(PRODUCTION, before, now, now.history[:-1])

    def _point(self, name: str, version: Version, over: Alias | None, history: tuple[str, ...]) -> Alias:
        alias = Alias(
            name=name,
            version=version.name,
            sha256=version.sha256,
            serial=max(int(time.time() * 1000), over.serial + 1 if over else 0),
            changed=_now(),
            by=f"{_user()}@{platform.node()}",
            history=history,
        )
        content = dataclasses.asdict(alias)
        del content["tag"]
        key, data = _alias_key(name), _json(content)
        won = self.storage.swap(key, data, over.tag) if over else self.storage.create(key, data)
        if not won:
            now = self.alias(name)
            raise AliasMoved(
                f"{name} was set to {now.version if now else 'nothing'} by {now.by if now else 'somebody'} meanwhile; "
                "look at 'vdsr models list' and decide again"
            )
        return alias


def check_name(name: str) -> None:
    """
    Raises:
        UsageError: no name that a version can have.
    """
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"{name!r} cannot name a version: letters, digits, dots, dashes and underscores, "
            f"and none of {', '.join(RESERVED)}"
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _weights_key(name: str) -> str:
    return f"versions/{name}/weights.safetensors"


def _version_key(name: str) -> str:
    return f"versions/{name}/version.json"


def _alias_key(name: str) -> str:
    return f"aliases/{name}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
