"""Who made these weights? An Ed25519 signature beside a version tells, by a key that the operator trusts.

    versions/NAME/signatures/KEY.json   {"signature": base64}; KEY is the public key's fingerprint

A checksum in the registry tells damage and no more: whoever can write there can write both. A signature is made where
the private key is, over name and checksum, and is checked by every worker that has VDSR_MODEL_KEYS, before it loads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from vdsr.errors import CheckpointError
from worker.errors import ObjectNotFound, UsageError
from worker.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class Untrusted(CheckpointError):
    """Nobody whom this process trusts has signed this model."""


def make_key(path: Path) -> str:
    """Write a new private key, readable by its owner only, and its public half to PATH.pub; the fingerprint.

    Raises:
        UsageError: there is something already.
    """
    _require()
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    for name, data, mode in ((path, private, 0o600), (path.with_name(path.name + ".pub"), public, 0o644)):
        try:
            with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
        except FileExistsError as exc:
            raise UsageError(f"{name} is there already, and a key that is lost cannot be had again; move it") from exc
    return fingerprint(key.public_key())


def sign(storage: Storage, name: str, sha256: str, key_file: Path) -> str:
    """Put a signature beside a version; the fingerprint of the key.

    Raises:
        UsageError: no private key of Ed25519 without a password.
    """
    key = _private_key(key_file)
    signer = fingerprint(key.public_key())
    text = json.dumps({"signature": base64.b64encode(key.sign(statement(name, sha256))).decode()}) + "\n"
    storage.write(_key_of(name, signer), text.encode())
    return signer


def check(storage: Storage, name: str, sha256: str, keys_file: Path) -> str:
    """The fingerprint of the trusted key that has signed a version.

    Raises:
        Untrusted: none has, or the signature is of something else.
        UsageError: the file holds no public keys.
    """
    from cryptography.exceptions import InvalidSignature

    why = "nobody in VDSR_MODEL_KEYS has signed it"
    for key in trusted_keys(keys_file):
        signer = fingerprint(key)
        try:
            key.verify(_signature(storage, name, signer), statement(name, sha256))
        except ObjectNotFound:
            continue
        except (InvalidSignature, ValueError, KeyError, TypeError):
            why = f"the signature by {signer} is not of these weights under this name"
        else:
            return signer
    raise Untrusted(f"version {name!r} ({sha256[:12]}) is not trusted: {why}; see 'vdsr models sign --help'")


def statement(name: str, sha256: str) -> bytes:
    """What is signed: a name stands in it, or an old version could be passed off as another."""
    return f"vdsr model, format 1\nname {name}\nsha256 {sha256}\n".encode()


def fingerprint(key: Ed25519PublicKey) -> str:
    """Sixteen hexadecimal digits of SHA-256 over the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def trusted_keys(path: Path) -> list[Ed25519PublicKey]:
    """The public keys (PEM, one behind the other) of a file.

    Raises:
        UsageError: it cannot be read, or holds none: trust that is asked for is never left out.
    """
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        keys = [load_pem_public_key(block) for block in _PEM.findall(path.read_bytes())]
    except (OSError, ValueError) as exc:
        raise UsageError(f"VDSR_MODEL_KEYS is {str(path)!r}, which cannot be read: {exc}") from exc
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) < len(keys):
        raise UsageError(
            f"VDSR_MODEL_KEYS is {str(path)!r}, with {len(found)} Ed25519 keys among {len(keys)} public keys; give the "
            ".pub files of 'vdsr models keygen', one behind the other"
        )
    return found


def _private_key(path: Path) -> Ed25519PrivateKey:
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as exc:
        raise UsageError(f"{path} is no private key that can be used ({exc}); see 'vdsr models keygen --help'") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is no Ed25519 key; see 'vdsr models keygen --help'")
    return key


def _signature(storage: Storage, name: str, signer: str) -> bytes:
    return base64.b64decode(json.loads(storage.read(_key_of(name, signer)))["signature"], validate=True)


def _key_of(name: str, signer: str) -> str:
    return f"versions/{name}/signatures/{signer}.json"


def _require() -> None:
    try:
        import cryptography  # noqa: F401  # its absence has a remedy
    except ImportError as exc:
        raise UsageError("signatures need the package cryptography: pip install 'vdsr[sign]'") from exc
