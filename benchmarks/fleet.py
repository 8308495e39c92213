"""Do more workers do more, and do jobs share them? Whole workers, with an engine that only waits.

python benchmarks/fleet.py scaling       # images/s of 1, 2, 4 and 8 workers that take 4 s for an image
python benchmarks/fleet.py sharing       # ten images behind a huge job; shares of three priorities
python benchmarks/fleet.py whole         # 2,000 thumbnails by two workers with an engine that takes no time

The stand-in ("--model timed:4", vdsr/stand_in.py) sleeps in the network's place, so that eight workers fit on two
cores as they fit on eight cards; the rest is what a worker does: lease, fetch, decode, bicubic, encode, write, record.
Pictures of 16 x 16 come from benchmarks/bucket.py over HTTP. A job's time is that from its first lease to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scale import serving, settings_of

from vdsr.device import describe
from worker.client import Client, draft
from worker.embedded import LocalRedis, guarded, worker_command, worker_environment
from worker.jobs import Options
from worker.settings import load_settings

SECONDS = 4.0
"""Of the stand-in, an image: what 1.6 MP of output take on two cores."""
CHUNK = 20
"""Images a chunk, of small jobs behind huge ones."""
EACH = 15
"""Images for each worker: three chunks."""
WORKERS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Ground:
    """A Redis, a bucket, and the environment in which workers see both."""

    folder: Path
    client: Client
    environment: dict[str, str]

    @contextmanager
    def workers(self, count: int) -> Iterator[list[int]]:
        """So many, once they report; the process ids of their guards."""
        with ExitStack() as stack:
            pids = []
            for n in range(count):
                command = worker_command(name=f"w{n}@%h", level="WARNING")
                log = self.folder / f"w{n}.log"
                process = guarded(command, log=log, cwd=self.folder, env=self.environment)
                pids.append(stack.enter_context(process).pid)
            wait(lambda: len(self.client.workers()) >= count)
            yield pids
        wait(lambda: not self.client.workers())

    def submit(self, count: int, target: str, seconds: float, **options: Any) -> str:
        """A job of so many objects; its id."""
        wanted = Options(score=False, **options)
        model = f"timed:{seconds:g}"
        return self.client.submit(
            draft(f"s3://bucket/{count}", f"s3://bucket/{target}", wanted, self.client.settings, model=model)
        )

    def done(self, job_id: str) -> int:
        """Images that are recorded."""
        return int(self.client.ledger.record(job_id).counters.get("done", 0))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with ground(EACH // 3 if args.kind == "scaling" else CHUNK) as here:
        rows = KINDS[args.kind](here)
    for row in rows:
        print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe(torch.device("cpu")), "rows": rows}, indent=1))


@contextmanager
def ground(chunk: int = CHUNK) -> Iterator[Ground]:
    """All but the workers, who will take so many images at a time."""
    with tempfile.TemporaryDirectory(prefix="vdsr-") as name, serving(Path(name)) as endpoint:
        folder = Path(name)
        given = settings_of(folder, endpoint) | {"VDSR_CHUNK_IMAGES": str(chunk), "VDSR_THREADS": "1"}
        os.environ.update(given)
        with LocalRedis(folder):
            settings = load_settings()
            yield Ground(folder, Client.connect(settings), worker_environment(settings) | given)


def scaling(here: Ground) -> list[dict[str, Any]]:
    """The rate of each number of workers, against that many times what one could do at best."""
    rows: list[dict[str, Any]] = []
    for count in WORKERS:
        with here.workers(count):
            warm = here.submit(CHUNK * 4 * count, f"warm-{count}", 0)  # every process loads torch
            wait(lambda warm=warm: here.client.ledger.record(warm).state.ended)
            images = count * EACH
            record = here.client.wait(here.submit(images, f"out-{count}", SECONDS))
            assert record is not None
            assert record.counters["done"] == images
            rate = images / record.seconds
        rows.append({"workers": count, "images_s": round(rate, 3), "of_ideal": round(rate * SECONDS / count, 4)})
        rows[-1]["efficiency"] = round(rate / (count * rows[0]["images_s"]), 4)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def sharing(here: Ground) -> list[dict[str, Any]]:
    """A small job alone and behind a huge one; then shares of priorities."""
    rows = []
    with here.workers(2):
        warm = here.submit(CHUNK * 8, "warm", 0)
        wait(lambda: here.client.ledger.record(warm).state.ended)
        alone = here.submit(10, "alone", 0.05)
        here.client.wait(alone)
        rows.append({"what": "10 images alone", "seconds": since_created(here, alone)})
        huge = here.submit(100_000, "huge", 0.05)
        wait(lambda: here.client.ledger.record(huge).planned >= 1000)
        wait(lambda: here.done(huge) > 100)
        waiting = here.client.ledger.record(huge)
        behind = here.submit(10, "behind", 0.05)
        here.client.wait(behind)
        rate = here.done(huge) / here.client.ledger.record(huge).seconds
        ahead = (waiting.planned - waiting.chunks_done) * CHUNK
        rows.append(
            {
                "what": f"10 images behind {ahead:,} that were queued before them",
                "seconds": since_created(here, behind),
                "seconds_in_a_line": round(ahead / rate, 1),
            }
        )
        here.client.cancel(huge)
    with ground(chunk=2) as other:
        rows.append(shares(other))
    return rows


def shares(here: Ground) -> dict[str, Any]:
    """Images that are done of three jobs in the time in which 600 are done in all."""
    with here.workers(2):
        jobs = {name: here.submit(2_000, name, 0.05, priority=name) for name in ("low", "normal", "high")}
        wait(lambda: all(here.client.ledger.record(each).planned >= 900 for each in jobs.values()))
        before = {name: here.done(each) for name, each in jobs.items()}

        def done() -> dict[str, int]:
            return {name: here.done(each) - before[name] for name, each in jobs.items()}

        wait(lambda: sum(done().values()) >= 600)
        found = done()
        for each in jobs.values():
            here.client.cancel(each)
    return {"what": "images that were done", **found}


def since_created(here: Ground, job_id: str) -> float:
    """From submission to the end."""
    record = here.client.ledger.record(job_id)
    assert record.finished is not None
    return round(record.finished - record.created, 2)


def whole(here: Ground) -> list[dict[str, Any]]:
    """Thumbnails, with nothing in the network's place."""
    count = 2_000
    with here.workers(2) as guards:
        warm = here.submit(CHUNK * 8, "warm", 0)
        wait(lambda: here.client.ledger.record(warm).state.ended)
        before = cpu_s(guards)
        job_id = here.submit(count, "out", 0)
        record = here.client.wait(job_id)
        assert record is not None
        assert record.counters["done"] == count
        spent = cpu_s(guards) - before
    return [{"images": count, "images_s": round(count / record.seconds, 1), "cpu_ms": round(1000 * spent / count, 2)}]


def cpu_s(pids: list[int]) -> float:
    """Processor time of processes and all below them that live."""
    total = 0.0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        total += cpu_s([int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()])
    return total


def wait(condition: Callable[[], bool]) -> None:
    """Look again and again; half an hour at most."""
    deadline = time.monotonic() + 1800
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


KINDS = {"scaling": scaling, "sharing": sharing, "whole": whole}

if __name__ == "__main__":
    main()
