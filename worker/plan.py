"""Which images does a job have, and in which chunks? Pages the listing and makes chunks, a window of them ahead.

A planner may be killed at any line, and two may run at once: a part of the manifest is created once and carries the
cursor behind it, so whoever comes second adopts it; the ledger accepts each chunk number once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

from worker import health
from worker.filelist import Named, named_entries
from worker.formats import IMAGE_SUFFIXES
from worker.jobs import Image, Job
from worker.ledger import Ledger
from worker.names import Namer, is_image
from worker.parts import Part, Parts
from worker.settings import Settings
from worker.sizing import expected_pixels
from worker.storage import Entry, is_hidden
from worker.uris import open_storage

WINDOW = 1000
"""Most chunks that are queued or being done at a time: bounds Redis' memory whatever the job's size."""
LOW_WATER = 500
"""Planning goes on when fewer are left."""
SCAN = 10_000
"""Most objects looked at for one chunk, so that a planner reports even where few objects are images."""
FOLDER_UNREADABLE = "folder_unreadable"
BYTES_PER_PIXEL = {
    "JPEG": 0.3,
    "WEBP": 0.2,
    "GIF": 0.6,
    "PNG": 1.5,
    "TIFF": 3.0,
    "BMP": 3.0,
    "AVIF": 0.15,
    "HEIC": 0.15,
}
"""Typical of photographs. Only the evenness of chunks hangs on it."""
CHUNK_MEGAPIXELS = {"cpu": 8, "cuda": 4096}
"""Output of about 30 seconds."""


def plan_job(ledger: Ledger, job_id: str, settings: Settings, device: str, enqueue: Callable[[int], None]) -> None:
    """Make chunks until the listing ends or the window is full.

    Args:
        device: "cpu" or "cuda", what the chunks are sized for.
        enqueue: queues a chunk that the ledger has accepted.
    """
    record = ledger.record(job_id)
    if record.listed or record.state.ended:
        return
    parts = Parts(record.job, settings)
    chunk, cursor = record.planned, record.cursor
    listing = Listing(record.job, settings, device, cursor)
    while True:
        drafted = listing.take()
        part = parts.add_manifest(chunk, drafted)
        if part.cursor != drafted.cursor:  # another planner was here before
            listing = Listing(record.job, settings, device, part.cursor)
        counters = {
            "images": len(part.images),
            "ignored": part.ignored,
            "bytes": sum(image.size_bytes for image in part.images),
        }
        open_chunks = ledger.plan(job_id, chunk, part.cursor, counters, last=part.last)
        if open_chunks is None:
            return
        enqueue(chunk)
        health.progress()
        if part.last or (open_chunks >= WINDOW and ledger.rest(job_id, LOW_WATER)):
            return
        chunk += 1


class Listing:
    """Cuts a job's listing into parts, from a cursor on."""

    def __init__(self, job: Job, settings: Settings, device: str, cursor: str, named: Named | None = None) -> None:
        """
        Args:
            cursor: of the part before, or "" for the beginning.
            named: the files that the user has named, where the job is not written down yet.
        """
        self.job = job
        state: dict[str, Any] = json.loads(cursor) if cursor else {"after": "", "stack": []}
        self.after: str = state["after"]
        self.namer = Namer(job.options, [(stem, outputs) for stem, outputs in state["stack"]])
        self.entries = _entries(job, settings, self.after, named)
        self.waiting = next(self.entries, None)
        self.most_images = settings.chunk_images
        self.most_pixels = 1e6 * (settings.chunk_megapixels or CHUNK_MEGAPIXELS[device])

    def take(self) -> Part:
        """The next part."""
        images: list[Image] = []
        ignored, scanned, pixels = 0, 0, 0.0
        while self.waiting is not None and len(images) < self.most_images and scanned < SCAN:
            entry = self.waiting
            if entry.problem and not entry.code and not self._excluded(entry.key):
                images.append(_unreadable(entry))
            elif not (self.job.only or self._wanted(entry.key)):
                ignored += 1
            else:
                cost = self._output_pixels(entry)
                if images and pixels + cost > self.most_pixels:
                    break
                pixels += cost
                images.append(self._image(entry))
            scanned += 1
            if not entry.problem or entry.key > self.after:  # one that was read in part may lie before
                self.after = entry.key
            self.waiting = next(self.entries, None)
        cursor = json.dumps({"after": self.after, "stack": self.namer.stack})
        return Part(images=tuple(images), ignored=ignored, cursor=cursor, last=self.waiting is None)

    def _wanted(self, key: str) -> bool:
        options = self.job.options
        included = not options.include or any(fnmatchcase(key, pattern) for pattern in options.include)
        return is_image(key) and included and not self._excluded(key)

    def _excluded(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self.job.options.exclude)

    def _image(self, entry: Entry) -> Image:
        if self.job.only:
            output, problem = self.job.only[1], None
        else:
            output, problem = self.namer.name(entry.key)
        if entry.code:
            problem = (entry.code, entry.problem)
        return Image(entry.key, entry.size_bytes, entry.version, output, problem)

    def _output_pixels(self, entry: Entry) -> float:
        suffix = "." + entry.key.rpartition(".")[2].lower()
        per_pixel = BYTES_PER_PIXEL[IMAGE_SUFFIXES.get(suffix, "PNG")]
        return expected_pixels(self.job.options, entry.size_bytes / per_pixel)


def _unreadable(entry: Entry) -> Image:
    """A folder that may not be read stands in the manifest as one failed image, so that it is counted and told."""
    message = f"{entry.problem}; what it holds is not known, so submit again once it is mended"
    return Image(entry.key, 0, "", entry.key, (FOLDER_UNREADABLE, message))


def _entries(job: Job, settings: Settings, after: str, named: Named | None) -> Iterator[Entry]:
    """The source's objects after a key, without those of a destination that lies inside the source."""
    inside = f"{job.destination}/".removeprefix(f"{job.source.rstrip('/')}/")
    if job.named:
        deep = job.options.recursive
        listed = (entry for entry in named_entries(job, settings, after, named) if deep or "/" not in entry.key)
        return (entry for entry in listed if not entry.key.startswith(inside) and not is_hidden(entry.key))
    source = open_storage(job.source, settings)
    if job.only:
        key = job.only[0]
        near = takewhile(lambda e: e.key <= key, source.entries(after=max(after, key[:-1]), recursive=False))
        return (entry for entry in near if entry.key == key)
    listing = source.entries(after=after, recursive=job.options.recursive, with_denied=True)
    return (entry for entry in listing if not entry.key.startswith(inside))
