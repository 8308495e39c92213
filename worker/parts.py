"""What lies at DEST/.vdsr/JOB/? The job's own record, kept for good beside its outputs.

    job.json                  the job, and once it has ended its state and totals
    manifest/0000000.jsonl    one part a chunk: a header line, then its images
    results/0000000.jsonl     one part a chunk: the outcome of each image

Parts are created once and never changed: of two workers that write the same part, one wins and the other takes over
what it finds. A later part speaks for an image that stands in an earlier one too (a retry).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from worker.errors import NewerFormat, NotFound, ObjectNotFound, UsageError
from worker.jobs import SCHEMA, Image, Job, Outcome, State, known_part
from worker.settings import Settings
from worker.storage import Storage
from worker.uris import open_storage

T = TypeVar("T")
READERS = 8
"""Parts that are read at once: a job of ten million images has 100,000 of each kind."""
DAMAGED = (ValueError, KeyError, TypeError, AttributeError)
"""What comes of reading a record that is none of ours."""


@dataclass(frozen=True)
class Part:
    """A chunk's share of the manifest."""

    images: tuple[Image, ...]
    ignored: int
    """Objects of the listing up to here that are no images."""
    cursor: str
    """Where the listing goes on after this part."""
    last: bool
    """Whether the listing ends here."""


class Parts:
    """Reads and writes the record of one job."""

    def __init__(self, job: Job, settings: Settings, *, destination: str | None = None) -> None:
        """
        Args:
            destination: where the outputs and the record lie now; None where the job has put them.
        """
        self.job, self.destination = job, (destination or job.destination).rstrip("/")
        self.storage: Storage = open_storage(f"{self.destination}/.vdsr/{job.id}", settings)

    @classmethod
    def at(
        cls, destination: str, job_id: str, settings: Settings, *, moved: bool = False
    ) -> tuple[Parts, State | None]:
        """The record of a job from its destination alone, and the state in which it ended, if it has.

        Args:
            moved: whether it may have been written for another destination, and lie here as a copy that is only read.

        Raises:
            NotFound: there is no readable record of such a job.
            NewerFormat: it was written by a newer version of this program.
            UsageError: it was written for another destination.
        """
        place = f"{destination.rstrip('/')}/.vdsr/{job_id}"
        try:
            text = open_storage(place, settings).read("job.json").decode()
            job, ended = Job.from_json(text), json.loads(text).get("ended")
            state = State(ended["state"]) if ended else None
        except ObjectNotFound as exc:
            raise NotFound(f"there is no {place}/job.json; see {destination}/.vdsr for the jobs of that place") from exc
        except DAMAGED as exc:
            raise NotFound(f"{place}/job.json cannot be read: {exc}") from exc
        if record_uri(job) != place and not moved:
            raise UsageError(f"{place} was written for {record_uri(job)}; put it back there, or submit a new job")
        return cls(job, settings, destination=destination), state

    def add_manifest(self, chunk: int, part: Part) -> Part:
        """Write a part if there is none; the part that lies there now."""
        header = {"schema": self.job.schema, "ignored": part.ignored, "cursor": part.cursor, "last": part.last}
        rows = [header, *(vars(image) for image in part.images)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if self.storage.create(_name("manifest", chunk), text.encode()):
            return part
        return self.manifest(chunk)

    def manifest(self, chunk: int) -> Part:
        """A part of the manifest.

        Raises:
            NewerFormat: written by a newer version of this program.
        """
        header, *rows = map(json.loads, self.storage.read(_name("manifest", chunk)).splitlines())
        if header["schema"] > SCHEMA:
            raise NewerFormat(f"job {self.job.id}", header["schema"], SCHEMA)
        known = [known_part(Image, row) for row in rows]
        images = tuple(Image(**{**row, "problem": tuple(row["problem"]) if row["problem"] else None}) for row in known)
        return Part(images=images, ignored=header["ignored"], cursor=header["cursor"], last=header["last"])

    def add_results(self, chunk: int, rows: Sequence[Outcome]) -> list[Outcome]:
        """Write a chunk's outcomes if there are none; those that lie there now."""
        text = "".join(row.to_json() + "\n" for row in rows)
        if self.storage.create(_name("results", chunk), text.encode()):
            return list(rows)
        return self.results(chunk)

    def results(self, chunk: int) -> list[Outcome]:
        """The outcomes of a chunk.

        Raises:
            UsageError: the part is damaged.
        """
        data = self.storage.read(_name("results", chunk))
        try:
            return [Outcome.from_json(line) for line in data.decode().splitlines()]
        except DAMAGED as exc:
            raise UsageError(
                f"part {chunk} of the results of job {self.job.id} is damaged ({exc}); remove "
                f"{record_uri(self.job)}/{_name('results', chunk)}, and 'vdsr resume' does its images again"
            ) from exc

    def chunks(self, kind: str) -> list[int]:
        """The numbers of the parts of a kind, "manifest" or "results", in order."""
        keys = (entry.key for entry in self.storage.entries())
        return sorted(int(key[len(kind) + 1 : -len(".jsonl")]) for key in keys if key.startswith(f"{kind}/"))

    def all_results(self) -> Iterator[tuple[int, list[Outcome]]]:
        """Every results part that there is, with its chunk number, in order."""
        yield from in_order(self.results, self.chunks("results"))

    def write_job(self, totals: dict[str, object] | None = None) -> None:
        """Write job.json; again with totals when the job has ended."""
        content = {**json.loads(self.job.to_json()), **(totals or {})}
        self.storage.write("job.json", (json.dumps(content, indent=2) + "\n").encode())


def in_order(read: Callable[[int], T], chunks: Iterable[int]) -> Iterator[tuple[int, T]]:
    """Each chunk with what is read of it, a few of them ahead: neither one by one nor a million rows at once."""
    with ThreadPoolExecutor(READERS) as readers:
        ahead: deque[tuple[int, Future[T]]] = deque()
        for chunk in chunks:
            ahead.append((chunk, readers.submit(read, chunk)))
            if len(ahead) > READERS:
                number, found = ahead.popleft()
                yield number, found.result()
        for number, found in ahead:
            yield number, found.result()


def job_ids(destination: str, settings: Settings) -> list[str]:
    """The jobs that have a record at a destination, oldest first.

    Raises:
        NotFound: there is no such place.
    """
    entries = open_storage(f"{destination.rstrip('/')}/.vdsr", settings).entries()
    try:
        return sorted(e.key.removesuffix("/job.json") for e in entries if e.key.endswith("/job.json"))
    except ObjectNotFound as exc:
        raise NotFound(f"there is no record of a job at {destination}: {exc}") from exc


def record_uri(job: Job) -> str:
    """The folder or prefix of a job's record."""
    return f"{job.destination.rstrip('/')}/.vdsr/{job.id}"


def failed_rows(parts: Parts) -> dict[str, Outcome]:
    """The failures that no retry has mended, by key; holds no more than those."""
    failed: dict[str, Outcome] = {}
    for _, rows in parts.all_results():
        for row in rows:
            if row.outcome == "failed":
                failed[row.key] = row
            else:
                failed.pop(row.key, None)
    return failed


def final_rows(parts: Parts) -> dict[str, Outcome]:
    """The outcome of every image by key, the latest where a retry gave a second one."""
    return {row.key: row for _, rows in parts.all_results() for row in rows}


def _name(kind: str, chunk: int) -> str:
    return f"{kind}/{chunk:07d}.jsonl"
