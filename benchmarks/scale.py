"""What does a job of a million objects take of Redis, of planning, of `status` and of the report?

python benchmarks/scale.py                         # 1,000 to 1,000,000 objects; half an hour on two cores
python benchmarks/scale.py --images 1000 10000

Objects come from benchmarks/bucket.py over HTTP, and jobs from `vdsr submit`. Two *hollow workers* take the messages
off the queue and do with each what a worker does: plan, turn, lease, beats for every image, results, commit, finish.
They leave out the pixels: nothing is fetched, decoded, encoded or written but the record, which is what makes a million
affordable here. `benchmarks/fleet.py` has whole workers. Redis and the bucket are started for each count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vdsr.device import describe
from worker.app import FINISH, PLAN, QUEUE, Queue, make_app
from worker.chunk import Lease
from worker.deaths import owner_name
from worker.embedded import SOCKET, LocalRedis, guarded
from worker.finish import finish_job
from worker.fleet import Fleet
from worker.jobs import Image, Outcome
from worker.ledger import Ledger
from worker.parts import Parts
from worker.plan import plan_job
from worker.redis_client import RedisClient
from worker.settings import load_settings
from worker.summary import summarise

VDSR = str(Path(sys.executable).with_name("vdsr"))
BUCKET = Path(__file__).with_name("bucket.py")
TOGETHER = 8
"""Images that are recorded at once, as the pipeline records small ones."""
WORKERS = 2
SAMPLE_S = 0.25


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--hollow", action="store_true", help=argparse.SUPPRESS)  # what this program starts
    args = parser.parse_args()
    if args.hollow:
        hollow_worker()
        return
    rows = []
    for count in args.images:
        rows.append(job(count))
        print(json.dumps(rows[-1]), flush=True)
        if args.json:
            machine = describe(torch.device("cpu"))
            args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def job(count: int) -> dict[str, Any]:
    """A job of so many objects, from its submission to its report."""
    with tempfile.TemporaryDirectory(prefix="vdsr-") as name, serving(Path(name)) as endpoint:
        folder = Path(name)
        environment = settings_of(folder, endpoint)
        with LocalRedis(folder):
            ledger, watch = Ledger(environment["VDSR_REDIS_URL"]), Watch(environment["VDSR_REDIS_URL"])
            began, before = time.perf_counter(), children_s()
            words = ["submit", f"s3://bucket/{count}", "s3://bucket/out", "--model", "timed:0", "--no-score"]
            job_id = said(environment, *words).strip()
            row: dict[str, Any] = {"images": count, "submit_s": round(time.perf_counter() - began, 2)}
            row["submit_cpu_s"] = round(children_s() - before, 2)
            command = [sys.executable, __file__, "--hollow"]
            before = children_s()
            with watch.looking(job_id):
                workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(WORKERS)]
                while not ledger.record(job_id).state.ended:
                    assert all(worker.poll() is None for worker in workers)
                    time.sleep(0.1)
                row["wall_s"] = round(time.perf_counter() - began, 1)
            for worker in workers:
                worker.terminate()
            told = [json.loads(worker.communicate()[0]) for worker in workers]
            row["workers_cpu_s"] = round(children_s() - before, 1)
            for spent in told[0]:
                row[spent] = round(sum(each[spent] for each in told), 2)
            record = ledger.record(job_id)
            row["open_peak"] = watch.open_peak
            row["redis_bytes_an_image"] = round((watch.peak - watch.first) / count, 2)
            row["redis_peak_kb"] = round((watch.peak - watch.first) / 1000)
            row["redis_end_kb"] = round((watch.used() - watch.first) / 1000)
            row["status_ms"] = {
                "median": round(1000 * statistics.median(watch.status_s), 1),
                "p99": round(1000 * sorted(watch.status_s)[int(0.99 * (len(watch.status_s) - 1))], 1),
                "max": round(1000 * max(watch.status_s), 1),
                "cpu_median": round(1000 * statistics.median(watch.status_cpu_s), 1),
                "looks": len(watch.status_s),
            }
            assert record.counters["images"] == record.counters["done"] == count, record
            row["requests"] = json.loads(urllib.request.urlopen(f"{endpoint}/-/counts").read())
        row["report"] = report(environment, folder, count)
        row["report"]["rows"] = unique_rows(record.job, environment)
        assert row["report"]["rows"] == count
    return row


def report(environment: dict[str, str], folder: Path, count: int) -> dict[str, Any]:
    """`vdsr report` of the job's record: its time, memory and files."""
    began = time.perf_counter()
    page = folder / "report" / "report.html"
    before, peak_kb = children_s(), 0
    process = subprocess.Popen([VDSR, "report", "s3://bucket/out", "-o", page, "--no-pictures"], env=environment)
    while process.poll() is None:  # what getrusage says of a child begins with the memory of its parent
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak_kb = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), peak_kb)
        time.sleep(0.05)
    assert process.returncode == 0
    facts = json.loads((page.parent / "report.json").read_text())
    assert facts["images"]["done"] == count, facts["images"]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_s": round(children_s() - before, 2),
        "peak_mb": round(peak_kb / 1024),
        "page_kb": round(page.stat().st_size / 1000),
        "csv_mb": round((page.parent / "results.csv").stat().st_size / 1e6, 2),
    }


def unique_rows(job: Any, environment: dict[str, str]) -> int:
    """Images with exactly one outcome in the record."""
    os.environ.update({name: text for name, text in environment.items() if name.startswith("AWS_")})
    parts = Parts(job, load_settings(environment))
    numbers = [int(row.key[-12:-4]) for _, rows in parts.all_results() for row in rows]
    assert len(numbers) == len(set(numbers))
    return len(numbers)


class Watch:
    """Looks at Redis and at a job's status again and again."""

    def __init__(self, url: str) -> None:
        self._redis, self._ledger = RedisClient(url), Ledger(url)
        self._ledger.job_ids()  # connects, and lets Redis load nothing later
        self.first = self.peak = self.used()
        self.status_s: list[float] = []
        self.status_cpu_s: list[float] = []
        self.open_peak = 0

    def used(self) -> int:
        """Bytes that Redis holds."""
        return int(self._redis.do("info", "memory")["used_memory"])

    @contextmanager
    def looking(self, job_id: str) -> Iterator[None]:
        """For as long as the block runs."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(SAMPLE_S):
                self.peak = max(self.peak, self.used())
                self.open_peak = max(self.open_peak, int(self._redis.do("zcard", f"vdsr:{{{job_id}}}:open")))
                began, before = time.perf_counter(), time.thread_time()
                summarise(self._ledger.record(job_id))
                self.status_s.append(time.perf_counter() - began)
                self.status_cpu_s.append(time.thread_time() - before)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def hollow_worker() -> None:
    """Takes messages until it is asked to end; prints the seconds that it spent on planning and on chunks."""
    settings = load_settings()
    app = make_app(settings)
    ledger, queue, fleet = Ledger(settings.redis_url), Queue(settings, app), Fleet(settings.redis_url)
    spent = {"planning_s": 0.0, "planning_cpu_s": 0.0, "doing_cpu_s": 0.0}
    try:
        with app.connection() as connection:
            channel = connection.default_channel
            while True:
                fleet.report_worker(f"hollow-{os.getpid()}", [QUEUE])
                message = channel.basic_get(QUEUE)
                if message is None:
                    time.sleep(0.02)
                    continue
                name, (words, *_) = message.headers["task"], json.loads(message.body)
                began, before = time.perf_counter(), time.process_time()
                if name == PLAN:
                    job_id = words[0]
                    plan_job(ledger, job_id, settings, "cpu", lambda chunk, job=job_id: queue.upscale(job, chunk))
                    spent["planning_s"] += time.perf_counter() - began
                    spent["planning_cpu_s"] += time.process_time() - before
                elif name == FINISH:
                    finish_job(ledger, words[0], settings)
                else:
                    do_hollow_chunk(ledger, queue, settings, *words)
                    spent["doing_cpu_s"] += time.process_time() - before
                channel.basic_ack(message.delivery_tag)
    except SystemExit:
        print(json.dumps(spent))


def do_hollow_chunk(ledger: Ledger, queue: Queue, settings: Any, job_id: str, chunk: int) -> None:
    """All of worker.chunk's steps, with outcomes that nobody computed."""
    due = ledger.turn(job_id, chunk)
    if due != (job_id, chunk):
        queue.upscale(job_id, chunk)
    lease = Lease(ledger, *due, settings.lease_s, owner_name("hollow", os.getpid()))
    grant = lease.take()
    if grant is None:
        return
    parts = Parts(grant.job, settings)
    images = parts.manifest(due[1]).images
    rows = [outcome(image, grant.job.model.sha256) for image in images]
    with lease.kept():
        for start in range(0, len(rows), TOGETHER):
            numbers = range(start, min(start + TOGETHER, len(rows)))
            lease.start(numbers)
            lease.record([(n, rows[n]) for n in numbers])
    queue.member(due[0], lease.commit(parts.add_results(due[1], rows)))


def outcome(image: Image, sha256: str) -> Outcome:
    """As of a picture that was done."""
    stages = ("wait", "fetch", "decode", "upscale", "network", "encode", "write")
    return Outcome(
        image.key, image.output, "done", image.size_bytes,
        psnr={"kind": "reference", "bicubic": 30.1234, "vdsr": 31.2345, "gain": 1.1111, "reason": None},
        model=sha256, width=32, height=32, seconds=dict.fromkeys(stages, 0.0012),
        worker=f"hollow@node{os.getpid()}", finished=round(time.time(), 2),
    )  # fmt: skip


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The bucket; its URL."""
    log = folder / "bucket.log"
    with guarded([sys.executable, str(BUCKET)], log=log):
        while not (log.exists() and log.read_text().endswith("\n")):
            time.sleep(0.05)
        yield f"http://127.0.0.1:{log.read_text().split()[-1]}"


def settings_of(folder: Path, endpoint: str) -> dict[str, str]:
    """The environment of every process here."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("VDSR_", "AWS_"))}
    return clean | {
        "VDSR_CONFIG": "none",
        "VDSR_STATE_DIR": str(folder),
        "VDSR_REDIS_URL": f"unix://{folder / SOCKET}",
        "VDSR_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "3",
    }


def said(environment: dict[str, str], *words: str) -> str:
    """What a command prints."""
    result = subprocess.run([VDSR, *words], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def children_s() -> float:
    """Processor time of children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):
        main()
