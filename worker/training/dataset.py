"""Where do training images come from? Any storage; what lies in S3 is fetched once and kept in the local cache.

The cache (VDSR_CACHE_DIR) holds objects as they were fetched, by place and version, and the arrays that training
reads, by content. It may be deleted at any time; the next run makes it anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vdsr.data import SUFFIXES, Dataset, Picture, prepare, split
from vdsr.device import cores
from vdsr.errors import ImageError, TooLittleData, VdsrError
from worker.errors import NothingMatched, StorageError, UsageError
from worker.settings import Settings
from worker.storage import Entry, Storage
from worker.storage.local import LocalStorage
from worker.uris import open_storage

FETCHING = 8
"""Threads that fetch: the network is slower than the processor."""


@dataclass(frozen=True)
class Source:
    """One image, and how to get it."""

    storage: Storage
    entry: Entry

    @property
    def name(self) -> str:
        """Its full name."""
        return f"{self.storage.uri.rstrip('/')}/{self.entry.key}"


def read_dataset(
    uris: Sequence[str],
    scales: Sequence[float],
    held: int,
    settings: Settings,
    *,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Read every image below the URIs, and keep some aside for validation.

    Args:
        held: how many are kept aside.
        on_image: called with the number of images that are ready and their total; what it raises ends the reading.

    Raises:
        UsageError: too few images.
    """
    sources = [
        Source(storage, entry)
        for storage in (open_storage(uri, settings) for uri in uris)
        for entry in storage.entries()
        if PurePosixPath(entry.key).suffix.lower() in SUFFIXES
    ]
    if not sources:
        raise NothingMatched(f"no image found at {', '.join(uris)}; check the path")
    remote = not all(isinstance(source.storage, LocalStorage) for source in sources)
    pictures: list[tuple[Source, Picture]] = []
    left_out: list[dict[str, str]] = []
    # No more threads than these, however many cores: each may hold an image of the largest size in float.
    with ThreadPoolExecutor(FETCHING if remote else min(FETCHING, cores())) as pool:
        try:
            prepared = pool.map(lambda source: _prepare(source, scales, settings), sources)
            for done, (source, picture) in enumerate(zip(sources, prepared, strict=True), 1):
                if isinstance(picture, Picture):
                    pictures.append((source, picture))
                else:
                    left_out.append({"image": source.name, "reason": picture})
                on_image(done, len(sources))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    try:
        train, validation = split(pictures, held)
    except TooLittleData as exc:
        bad = f"; {len(left_out)} could not be read, such as {left_out[0]}" if left_out else ""
        raise UsageError(f"{exc} at {', '.join(uris)}{bad}") from exc
    manifest = {
        "uris": list(uris),
        "train": [{"image": source.name, "sha256": picture.sha256} for source, picture in train],
        "validation": [{"image": source.name, "sha256": picture.sha256} for source, picture in validation],
        "left_out": left_out,
    }
    return Dataset([p for _, p in train], [p for _, p in validation], manifest)


def _prepare(source: Source, scales: Sequence[float], settings: Settings) -> Picture | str:
    """The image, or why it cannot be used."""
    cache = settings.cache_dir
    try:
        return prepare(_local(source, cache), scales, cache=cache / "prepared", max_pixels=settings.max_pixels)
    except (ImageError, _NotFetched) as exc:
        return str(exc)
    except OSError as exc:
        raise StorageError(f"cannot write {cache}: {exc.strerror}; free some space, or set VDSR_CACHE_DIR") from exc


class _NotFetched(VdsrError):
    """One object cannot be read."""


def _local(source: Source, cache: Path) -> Path:
    """A local file of the image."""
    if isinstance(source.storage, LocalStorage):
        return Path(source.storage.uri) / source.entry.key
    name = "\0".join((source.storage.uri, source.entry.key, source.entry.version))
    suffix = PurePosixPath(source.entry.key).suffix
    objects = LocalStorage(cache / "objects")
    key = hashlib.sha256(name.encode()).hexdigest() + suffix
    if not objects.exists(key):
        try:
            data = source.storage.read(source.entry.key)
        except StorageError as exc:
            raise _NotFetched(str(exc)) from exc
        objects.write(key, data)
    return Path(objects.uri) / key
