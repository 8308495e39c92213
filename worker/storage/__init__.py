"""Where do images lie? In a flat space of keys under one root, on local disk or in S3; both behave alike.

A key is relative to its root, with "/" between parts ("2019/a.png"). Listings come in an order that the storage
keeps (byte order on disk and on Amazon's S3; some servers sort "/" before all else), so that a listing can be taken
up again after any key that it gave; within one folder it is byte order everywhere.

Keys that start with a dot in any part (".vdsr/", ".DS_Store") are bookkeeping or hidden files, never images:
listings leave them out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    key: str
    size_bytes: int
    version: str
    """Changes when the content does: an S3 ETag, or size and modification time."""
    problem: str = ""
    """Of a folder that may not be read: why. Its key ends with "/", and what it holds is not known. Of a file that was
    named and cannot be had: why."""
    code: str = ""
    """Of the latter's problem."""


class Storage(Protocol):
    """A flat space of keys ("a/b.png") under one root, local or remote."""

    uri: str
    """The root, as a user would write it: "/data/photos" or "s3://bucket/prefix"."""

    def entries(self, *, after: str = "", recursive: bool = True, with_denied: bool = False) -> Iterator[Entry]:
        """Objects behind `after`, a key that an earlier listing gave, in the storage's order.

        Args:
            with_denied: give folders that may not be read as entries with a `problem`; otherwise AccessDenied rises.
        """

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """The whole object; ObjectNotFound, AccessDenied or StorageUnavailable where that fails.

        Args:
            max_bytes: of an object that is larger, nothing is held: FileTooLarge.
        """

    def read_version(self, key: str, *, max_bytes: int | None = None) -> tuple[bytes, str]:
        """The whole object as `read` gives it, and its version as a listing would tell it.

        S3 never mixes two versions. On disk a file that is seen to change while it is read is StorageUnavailable; a
        program that writes in place, and pauses, cannot be told from one that is done.
        """

    def entry(self, key: str) -> Entry:
        """One object as a listing would give it.

        Raises:
            ObjectNotFound: there is none.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def write(self, key: str, data: bytes, *, mark: str = "") -> None:
        """Replace the object whole: readers see the old bytes or the new, never a mix.

        Args:
            mark: a short ASCII text that is kept with the object, outside its bytes.
        """

    def mark(self, key: str) -> str | None:
        """The mark that an object was written with, "" if it has none; None if there is no such object."""

    def folds_names(self) -> bool:
        """Whether names that `fold` makes equal are one name here, as on the disks of most Macs."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object only if there is none; of two at the same time, exactly one is told True."""

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The whole object, and a tag of exactly this content for `swap`."""

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        """Replace the object only if it is still what `tag` was given for; of two at once, one is told True."""


def check_key(key: str) -> str:
    """The key itself, if it stays below its root on every storage.

    Raises:
        UnsafeKey: absolute, empty, with "..", ".", empty parts, backslash or NUL.
    """
    from worker.errors import UnsafeKey

    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key or "\\" in key:
        raise UnsafeKey(f"{key!r} is not a plain relative name and could leave its folder; rename it")
    return key


def fold(key: str) -> str:
    """What a disk sees of a key that neither tells upper from lower case, nor forms of Unicode apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", key).casefold())


def is_hidden(key: str) -> bool:
    """Whether any part of the key starts with a dot; "." and ".." are no names, and are to be told."""
    if not key.startswith(".") and "/." not in key:
        return False
    return any(part.startswith(".") and part not in (".", "..") for part in key.split("/"))
