"""What do hours of mixed jobs under random faults cost? `make soak`, or `python tests/faults/soak.py --minutes 30`.

Three workers take jobs between folders and buckets, in several scales and formats, with bad files among them. Every
few seconds a fault strikes: two of the workers are killed, paused or asked to stop, and Redis is killed, stalled or cut
off. The third worker meets Redis' faults only, and shows by its memory whether something grows. At the end every image
of every job is looked up, and compared with a run without faults.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

# ruff: noqa: E402  # what the tests share is found by this
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from helpers import make_photos, pool_of, rss_bytes, wait_until
from PIL import Image
from rig import Node, Rig, rig
from servers import s3_server
from tally import Tally, Watch, add, digests, table, write_json

from worker.errors import TransientError
from worker.storage.s3 import clients
from worker.uris import open_storage

BAD = {"empty.png": "empty", "cut.png": "truncated", "page.jpg": "unreadable", "print.jpg": "unsupported"}
WORK = [(2.0, "same"), (3.0, "png"), (1.5, "webp"), (4.0, "jpeg")]
"""Scales and formats."""
AT_ONCE = 2
"""Jobs that run side by side."""
SETTLE_S = 300
"""What is left gets this long once the faults have ended."""


@dataclass(frozen=True)
class Running:
    """A job, and what it is to come to."""

    id: str
    wanted: dict[str, str]
    destination: str


def main() -> int:
    """Soak, print the table, and say by the exit code whether any image paid for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=12, help="seconds between two faults, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    words = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vdsr-soak-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "s3").mkdir()
        server = stack.enter_context(s3_server(folder / "s3"))
        os.environ |= {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        clients.get(server.endpoint_url, None).create_bucket(Bucket="soak")
        fleet = stack.enter_context(rig(["spared", "one", "two"], s3=server, chunk_images=20, grace_s=10))
        return Soak(fleet, folder, words.minutes, words.every, words.seed).run(words.json)


class Soak:
    """One of them."""

    def __init__(self, fleet: Rig, folder: Path, minutes: float, every_s: float, seed: int) -> None:
        self.fleet, self.folder, self.minutes, self.every_s = fleet, folder, minutes, every_s
        self.chance = random.Random(seed)
        self.watch = Watch(fleet)
        self.jobs = Tally("all jobs")
        self.faults: dict[str, Tally] = {}
        self.refused = 0
        """Submissions that Redis was not there for."""
        self._ended = threading.Event()
        self._numbers = iter(range(1_000_000))

    def run(self, json_path: Path | None) -> int:
        """To its end; the exit code."""
        sources = self._sources()
        quiet = {work: self._quiet(sources[0], *work) for work in WORK}
        spared = self.fleet.nodes[0]
        begin = self._memory(spared)
        running: list[Running] = []
        deadline = time.monotonic() + 60 * self.minutes
        with self.watch.looking(), ThreadPoolExecutor(1) as one:
            breaker = one.submit(self._break)
            try:
                while time.monotonic() < deadline and not breaker.done():
                    running = self._settled(running)
                    while len(running) < AT_ONCE and (job := self._submit(self.chance.choice(sources), quiet)):
                        running.append(job)
                    time.sleep(0.5)
            finally:
                self._ended.set()
            breaker.result()  # a soak whose faults have ended shows nothing
            deadline = time.monotonic() + SETTLE_S
            while running and time.monotonic() < deadline:
                self._supervise()
                running = self._settled(running)
                time.sleep(0.5)
        for job in running:
            print(f"job {job.id} has not ended: {self.fleet.service.client.ledger.record(job.id)}")
            self.jobs.lost += len(job.wanted) + len(BAD)
        self.fleet.wait_for(spared)
        self._quiet(sources[0], *WORK[0])  # so that its memory is that of a worker at work, as at the beginning
        end = self._memory(spared)
        tallies = [*sorted(self.faults.values(), key=lambda tally: tally.fault), self.jobs]
        print(table(tallies))
        print("\n".join(self.jobs.amiss))
        print(
            f"{self.minutes:g} minutes, {self.jobs.runs} jobs, {self.refused} submissions refused while Redis was away"
        )
        print(f"memory of the spared worker, Celery and its child: {begin} MB at the start, {end} MB at the end")
        if json_path:
            write_json(json_path, tallies, minutes=self.minutes, refused=self.refused, rss_mb=[begin, end])
        return 0 if self.jobs.clean else 1

    # --- jobs --------------------------------------------------------------------------------------------------------

    def _sources(self) -> list[str]:
        """The same pictures in a folder and in a bucket."""
        photos = make_photos(self.folder / "in", 50, size=(72, 56))
        for n, mode in enumerate(("L", "LA", "RGBA", "P")):
            Image.effect_noise((64, 48), 50).convert(mode).save(photos / f"mode-{n}.png")
        Image.effect_noise((64, 48), 50).save(photos / "scan.tif")
        Image.effect_noise((420, 300), 50).convert("RGB").save(photos / "larger.webp", lossless=True)
        good = (photos / "0002.png").read_bytes()
        (photos / "empty.png").write_bytes(b"")
        (photos / "cut.png").write_bytes(good[: len(good) // 2])
        (photos / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
        Image.new("CMYK", (20, 20)).save(photos / "print.jpg")
        bucket = open_storage("s3://soak/in", self.fleet.service.settings)
        for path in photos.rglob("*.*"):
            bucket.write(path.relative_to(photos).as_posix(), path.read_bytes())
        return [str(photos), "s3://soak/in"]

    def _quiet(self, source: str, scale: float, wanted_format: str) -> dict[str, str]:
        """What a run without faults makes."""
        out = self.folder / f"quiet-{next(self._numbers)}"
        summary = self.fleet.service.run(source, out, scale=scale, format=wanted_format, score=False)
        assert summary["images"]["failed"] == len(BAD), summary
        return digests(str(out), self.fleet.service)

    def _submit(self, source: str, quiet: dict[tuple[float, str], dict[str, str]]) -> Running | None:
        scale, wanted_format = work = self.chance.choice(WORK)
        number = next(self._numbers)
        destination = self.chance.choice([f"{self.folder}/out-{number}", f"s3://soak/out-{number}"])
        try:
            job_id = self.fleet.service.submit(source, destination, scale=scale, format=wanted_format, score=False)
        except TransientError:
            self.refused += 1
            return None
        self.watch.jobs.append(job_id)
        return Running(job_id, quiet[work], destination)

    def _settled(self, running: list[Running]) -> list[Running]:
        """Counts those that have ended; the others."""
        left = []
        for job in running:
            try:
                over = not self.fleet.service.client.ledger.is_open(job.id)
                if over:
                    add(self.jobs, self.fleet.service, job.id, job.wanted, BAD)
            except TransientError:
                over = False
            if not over:
                left.append(job)
                continue
            self.jobs.runs += 1
            self.watch.jobs.remove(job.id)
            if not job.destination.startswith("s3://"):
                # a worker that was paused longer than its lease may be at its last image still, which does no harm
                shutil.rmtree(job.destination, ignore_errors=True)
        return left

    def _memory(self, node: Node) -> list[int]:
        """Of Celery and of its child, in MB."""
        wait_until(lambda: bool(pool_of(node.celery)))
        return [rss_bytes(pid) >> 20 for pid in (node.celery, *pool_of(node.celery))]

    # --- faults ------------------------------------------------------------------------------------------------------

    def _break(self) -> None:
        """A fault every now and then, and somebody who starts again what has ended."""
        strikes: list[tuple[str, Callable[[], None]]] = [
            ("kill -9 of a worker", lambda: self._victim().kill()),
            ("kill -9 of Celery's process", lambda: self._victim().kill_celery()),
            ("kill -9 of the working process", lambda: self._victim().kill_child() and None),
            ("SIGTERM of a worker", lambda: self._victim().ask_to_stop()),
            ("worker paused for 10 s, longer than its lease", self._pause),
            ("kill -9 of Redis", self._kill_redis),
            ("Redis stalled for 20 s", lambda: self.fleet.redis.stall(20)),
            ("connections to Redis half open", self._cut),
        ]
        while not self._ended.wait(self.every_s * self.chance.uniform(0.5, 1.5)):
            name, strike = self.chance.choice(strikes)
            self.watch.strike(self.faults.setdefault(name, Tally(name)))
            strike()
            self._ended.wait(self.chance.uniform(0, 3))
            self._supervise()

    def _victim(self) -> Node:
        return self.chance.choice(self.fleet.nodes[1:])

    def _pause(self) -> None:
        victim = self._victim()
        victim.pause()
        time.sleep(10)
        victim.go_on()

    def _kill_redis(self) -> None:
        self.fleet.redis.kill()
        time.sleep(self.chance.uniform(0, 5))
        self.fleet.redis.start()

    def _cut(self) -> None:
        self.fleet.redis_way.silence()
        self.fleet.redis_way.restore(old=False)

    def _supervise(self) -> None:
        for node in self.fleet.nodes:
            if node.ended:
                node.start()


if __name__ == "__main__":
    sys.exit(main())
