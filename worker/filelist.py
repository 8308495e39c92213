"""Which files does a job have whose user has named them? A list at its destination, in parts that planners page.

    DEST/.vdsr/JOB/files/0000000.json     10,000 keys of the source each, in byte order, as a JSON list

Redis and messages hold none of them. A planner finds its place by the first key of a part, in some reads however long
the list is, and asks the source for the size and version of each file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from worker.errors import ObjectNotFound, StorageError, UnsafeKey, UsageError
from worker.jobs import Job
from worker.settings import Settings
from worker.storage import Entry, Storage, check_key
from worker.uris import open_storage

PART = 10_000
"""Keys."""
ASKERS = 16
"""Threads that ask the source what is there; so many files at a time, four times over."""


@dataclass(frozen=True)
class Named:
    """Files that a user has named: keys below the source, in byte order, each once."""

    keys: tuple[str, ...]

    @property
    def facts(self) -> tuple[int, str]:
        """How many there are, and a digest, for the job's record."""
        return len(self.keys), hashlib.sha256("\0".join(self.keys).encode("utf-8", "surrogateescape")).hexdigest()

    def write(self, job: Job, settings: Settings) -> None:
        """Leave them at the destination, several parts at a time: a sweeper has the job planned after some seconds."""
        storage = _storage(job, settings)

        def write(number: int) -> None:
            storage.create(_name(number), json.dumps(self.keys[number * PART : (number + 1) * PART]).encode())

        with ThreadPoolExecutor(ASKERS) as writers:
            for _ in writers.map(write, range(-(-len(self.keys) // PART))):
                pass  # an error rises here

    def after(self, key: str) -> Iterator[str]:
        """Those behind a key."""
        return (each for each in self.keys if _order(each) > _order(key))


def read_names(data: bytes, root: str, *, null: bool = False) -> Named:
    """The names in a file: one a line, or each ended by NUL.

    Args:
        root: URI of the source; a name may be relative to it, or be it and more.

    Raises:
        UsageError: a name leads out of the source, or there is none.
    """
    text = data.decode("utf-8", "surrogateescape")
    names = text.split("\0") if null else text.splitlines()
    keys = {_key(name, number, root) for number, name in enumerate(names, 1) if name.strip()}
    if not keys:
        raise UsageError("--files-from names no file; give one name a line, relative to the source")
    return Named(tuple(sorted(keys, key=_order)))


def named_entries(job: Job, settings: Settings, after: str, named: Named | None = None) -> Iterator[Entry]:
    """What lies at the source under the names behind `after`; what does not is an entry with a problem.

    Args:
        named: the names, where they were not written yet.
    """
    source = open_storage(job.source, settings)
    keys = named.after(after) if named else _written(job, settings, after)
    with ThreadPoolExecutor(ASKERS) as askers:
        while some := list(islice(keys, 4 * ASKERS)):
            yield from askers.map(lambda key: _entry(source, key), some)


def _key(name: str, number: int, root: str) -> str:
    key = name.removeprefix(f"{root.rstrip('/')}/").removeprefix("./")
    try:
        return check_key(key)
    except UnsafeKey as exc:
        raise UsageError(
            f"line {number} of --files-from is {name!r}, which does not lie below {root}; name files "
            "relative to the source"
        ) from exc


def _entry(source: Storage, key: str) -> Entry:
    try:
        return source.entry(key)
    except ObjectNotFound as exc:
        message = f"{key} was named by --files-from, and is not there: {exc}"
        return Entry(key, 0, "", problem=message, code=exc.code)
    except StorageError as exc:
        return Entry(key, 0, "", problem=str(exc), code=exc.code)


def _written(job: Job, settings: Settings, after: str) -> Iterator[str]:
    storage, parts = _storage(job, settings), -(-job.named[0] // PART) if job.named else 0
    first, behind = 0, parts
    while behind - first > 1:  # the last part that begins at or before the place
        middle = (first + behind) // 2
        if _order(_part(storage, middle)[0]) <= _order(after):
            first = middle
        else:
            behind = middle
    for number in range(first, parts):
        yield from (key for key in _part(storage, number) if _order(key) > _order(after))


def _part(storage: Storage, number: int) -> Sequence[str]:
    keys: Sequence[str] = json.loads(storage.read(_name(number)))
    return keys


def _storage(job: Job, settings: Settings) -> Storage:
    return open_storage(f"{job.destination.rstrip('/')}/.vdsr/{job.id}", settings)


def _name(number: int) -> str:
    return f"files/{number:07d}.json"


def _order(key: str) -> bytes:
    """Byte order, which is that of a listing."""
    return key.encode("utf-8", "surrogateescape")
