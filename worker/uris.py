"""Which place does a user mean?

`s3://` is always S3; "./", "/" and "~" are always local. A bare "bucket/prefix" is local if it exists here, else S3;
if it could be both, that is an error. What it was resolved to is always printed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.errors import StorageError, StorageUnavailable, UsageError
from worker.formats import IMAGE_SUFFIXES
from worker.settings import Settings
from worker.storage import Storage

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # Amazon S3's rules for new buckets


@dataclass(frozen=True)
class Place:
    """A resolved root: a local folder or file, or an S3 prefix or object."""

    scheme: str
    """file or s3."""
    bucket: str
    """Empty for local places."""
    path: str
    """Absolute local path, or S3 prefix without slashes at its ends."""

    @property
    def uri(self) -> str:
        """As a user would write it."""
        return self.path if self.scheme == "file" else f"s3://{self.bucket}/{self.path}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the path; empty for a bucket or the file system's root."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Place:
        """The folder or prefix that holds this place."""
        above = str(PurePosixPath(self.path).parent)
        return Place(self.scheme, self.bucket, "" if self.scheme == "s3" and above == "." else above)

    def sibling(self, name: str) -> Place:
        """A place beside this one."""
        parent = self.parent.path.rstrip("/")
        return Place(self.scheme, self.bucket, f"{parent}/{name}" if parent or self.scheme == "file" else name)

    @property
    def looks_like_image(self) -> bool:
        """Whether the name ends as an image's does."""
        return PurePosixPath(self.path).suffix.lower() in IMAGE_SUFFIXES


def resolve(text: str, settings: Settings, *, beside: Place | None = None) -> Place:
    """The place that a user's words mean.

    Args:
        beside: the source, for a destination: a bare name that does not exist yet is of the same kind.

    Raises:
        UsageError: empty, neither a local path nor a possible S3 name, or both.
    """
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no place; give a folder, a file, or s3://bucket/prefix")
    if text.startswith("s3://"):
        return _s3(text.removeprefix("s3://"), text)
    if "://" in text:
        raise UsageError(f"{text!r} has an unknown scheme; give a local path or s3://bucket/prefix")
    if text in (".", "..") or text.startswith(("./", "../", "/", "~")):
        return _local(text)
    if Path(text).exists():
        if _is_bucket(text.partition("/")[0], settings):
            raise UsageError(f"{text!r} exists here and as a bucket; write ./{text} or s3://{text}")
        return _local(text)
    if beside is not None and beside.scheme == "file":
        return _local(text)
    if "/" not in text:
        raise UsageError(f"{text!r} does not exist here; check the path, or write s3://{text} for a whole bucket")
    if not BUCKET.fullmatch(text.partition("/")[0]):
        raise UsageError(f"{text!r} does not exist here and is no S3 bucket name; check the path")
    return _s3(text, text)


def open_storage(uri: str, settings: Settings) -> Storage:
    """The storage of a resolved URI (`Place.uri`)."""
    if uri.startswith("s3://"):
        from worker.storage.s3 import S3Storage

        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        return S3Storage(bucket, prefix, endpoint_url=settings.s3_endpoint_url)
    from worker.storage.local import LocalStorage

    return LocalStorage(uri)


def _local(text: str) -> Place:
    return Place("file", "", str(Path(text).expanduser().resolve()))


def _is_bucket(name: str, settings: Settings) -> bool:
    """Whether S3 has such a bucket; asked only where somebody has set S3 up."""
    if not (settings.s3_endpoint_url and BUCKET.fullmatch(name)):
        return False
    storage = open_storage(f"s3://{name}", settings)
    try:
        next(storage.entries(), None)
    except (StorageError, StorageUnavailable):
        return False
    return True


def _s3(name: str, text: str) -> Place:
    bucket, _, prefix = name.partition("/")
    if not BUCKET.fullmatch(bucket):
        raise UsageError(f"{text!r} has no valid bucket name; write s3://bucket/prefix")
    if "//" in prefix.strip("/"):
        raise UsageError(f"{text!r} has an empty part; S3 keys with '//' cannot be a source or destination")
    return Place("s3", bucket, prefix.strip("/"))
