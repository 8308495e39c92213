"""What did a fault cost? Every image of a job is looked up in its results and at its destination, and counted."""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers import Service
from rig import Rig

from worker.errors import StorageError, TransientError
from worker.parts import Parts
from worker.uris import open_storage


@dataclass
class Tally:
    """What jobs under one kind of fault came to."""

    fault: str
    runs: int = 0
    """How often the fault struck."""
    images: int = 0
    lost: int = 0
    """Images without an outcome, or done without the bytes of a run without faults."""
    duplicated: int = 0
    """Outcomes too many, in the results or in the counters."""
    unexplained: int = 0
    """Images that failed and should not have, or failed with another code than they should have."""
    recovery_s: list[float] = field(default_factory=list)
    """From each fault until what it took was in good hands again."""

    amiss: list[str] = field(default_factory=list)
    """The images that paid, with what became of them."""

    @property
    def clean(self) -> bool:
        """Whether no image paid for it."""
        return not (self.lost or self.duplicated or self.unexplained)

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        times = sorted(self.recovery_s)
        middle = f"{statistics.median(times):.1f}" if times else ""
        most = f"{times[-1]:.1f}" if times else ""
        counts = (self.runs, self.images, self.lost, self.duplicated, self.unexplained)
        return (self.fault, *(f"{count:,}" for count in counts), middle, most)


HEADS = ("fault", "runs", "images", "lost", "duplicated", "unexplained", "recovery s, median", "max")


def table(tallies: list[Tally]) -> str:
    """As Markdown."""
    rows = [HEADS, tuple("---" for _ in HEADS), *(tally.cells() for tally in tallies)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write_json(path: Path, tallies: list[Tally], **more: object) -> None:
    """The same for programs, with what else there is to tell."""
    path.write_text(json.dumps({**more, "faults": [asdict(tally) for tally in tallies]}, indent=2) + "\n")


def digests(uri: str, service: Service) -> dict[str, str]:
    """SHA-256 of every output at a destination, by key."""
    storage = open_storage(uri, service.settings)
    return {entry.key: hashlib.sha256(storage.read(entry.key)).hexdigest() for entry in storage.entries()}


def add(tally: Tally, service: Service, job_id: str, wanted: Mapping[str, str], codes: Mapping[str, str]) -> None:
    """Count a job that has ended.

    Args:
        wanted: output key -> digest, of a run without faults.
        codes: input key -> code, of images that are to fail.
    """
    record = service.client.ledger.record(job_id)
    rows = [row for _, part in Parts(record.job, service.settings).all_results() for row in part]
    seen = Counter(row.key for row in rows)
    found = digests(record.job.destination, service)
    made = {row.output for row in rows if row.outcome == "done"}
    total = len(wanted) + len(codes)
    counted = int(sum(record.counters.get(name, 0) for name in ("done", "failed", "skipped")))

    tally.images += total
    tally.lost += sum(output not in made or found.get(output) != digest for output, digest in wanted.items())
    tally.lost += sum(key not in seen for key in codes)
    tally.duplicated += sum(times - 1 for times in seen.values()) + abs(counted - len(rows))
    tally.unexplained += sum(row.outcome != "done" and row.code != codes.get(row.key) for row in rows)
    tally.amiss += [
        f"{job_id} {row.key}: {row.outcome} {row.code} {row.message}"
        for row in rows
        if seen[row.key] > 1 or (row.outcome != "done" and row.code != codes.get(row.key))
    ]
    tally.unexplained += record.state.value != "completed" or int(record.counters["images"]) != total


class Watch:
    """Sees chunks change hands, and so how long a fault kept one from being worked on."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.jobs: list[str] = []
        """Those that are looked at."""
        self._leases: dict[tuple[str, str], str] = {}
        self._struck: list[tuple[Tally, float, dict[tuple[str, str], str]]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def strike(self, tally: Tally) -> None:
        """A fault strikes now: which chunks are in whose hands?"""
        with self._lock:
            tally.runs += 1
            self._struck.append((tally, time.monotonic(), dict(self._leases)))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """For as long as the block runs."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                now = {(job, chunk): token for job in list(self.jobs) for chunk, token in self.rig.leases(job).items()}
            except (TransientError, StorageError):
                continue  # Redis is away: nothing changes hands
            with self._lock:
                self._compare(now)

    def _compare(self, now: dict[tuple[str, str], str]) -> None:
        """A chunk that was in one hand at a fault and is in another's afterwards has recovered from it."""
        for place, token in now.items():
            if self._leases.get(place) == token:
                continue
            for tally, when, before in reversed(self._struck):
                if place in before:
                    if before[place] != token:
                        tally.recovery_s.append(time.monotonic() - when)
                        before.pop(place)
                    break
        # What is overdue or given back has no owner for a while: it is remembered until somebody takes it.
        self._leases = now
