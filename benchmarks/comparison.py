"""What would one use instead? The same pictures, S3 and engine by vdsr, by Ray Data, and by a script of one process.

python -m venv build/ray && build/ray/bin/pip install -e . 'ray[data]'
python benchmarks/comparison.py --ray build/ray/bin/python

Each way starts from nothing, with two workers (the script has one), does the images in peace and while a process that
works is killed with SIGKILL; all ways take turns, three times, and the medians are told. The engine is the stand-in
that waits (vdsr/stand_in.py), the pictures are of 16 x 16 from benchmarks/bucket.py: what is compared is everything
around the network. What came out is what the bucket has: outputs that are there, and PUT requests beyond one for
each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

SECONDS = 0.05
IMAGES = 600
KILL_AT = 200
"""Images that are done when a process is killed."""
STILL_S = 60
"""Without one more output for so long, a way has ended or hangs."""
START_S = 300
"""The same before the first."""
HERE = Path(__file__).parent


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ray", type=Path, help="the Python of an environment with ray[data]; without, Ray is left out"
    )
    parser.add_argument("--only", nargs="*", choices=["vdsr", "script", "ray"], help="these ways")
    parser.add_argument("--rounds", type=int, default=3, help="over all of them")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--way", choices=["script", "ray"], help=argparse.SUPPRESS)  # what this program starts
    args = parser.parse_args()
    if args.way:
        {"script": by_script, "ray": by_ray}[args.way]()
        return
    import torch

    from vdsr.device import describe

    ways: dict[str, Callable[..., Any]] = {"vdsr": vdsr_fleet, "script": script(Path(sys.executable), "script")}
    if args.ray:
        ways["ray"] = script(args.ray.absolute(), "ray")
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.rounds):
        for name in args.only or ways:
            for kind in ("quiet", "killed"):
                found = measured(ways[name], kill=kind == "killed")
                runs.setdefault((name, kind), []).append(found)
                print(json.dumps({"way": name, "kind": kind, **found}), flush=True)
        rows = [
            {"way": name, **{kind: together(runs[name, kind]) for kind in ("quiet", "killed")}}
            for name in args.only or ways
        ]
        if args.json:
            args.json.write_text(json.dumps({"machine": describe(torch.device("cpu")), "rows": rows}, indent=1))


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of several runs, and the most of what a run may have cost."""
    most = ("missing", "done_twice")
    return {
        name: max(run[name] for run in runs)
        if name in most
        else value and round(statistics.median(run[name] for run in runs), 1)
        for name, value in runs[0].items()
    }


def measured(start: Callable[..., Any], *, kill: bool) -> dict[str, Any]:
    """One run of a way."""
    from scale import serving, settings_of

    with tempfile.TemporaryDirectory(prefix="vdsr-") as name, serving(Path(name)) as endpoint:
        folder, began = Path(name), time.perf_counter()
        seen: list[tuple[float, int]] = []
        peak, struck = 0.0, None
        with start(folder, settings_of(folder, endpoint)) as (ended, victim):
            while True:
                now, outputs = time.perf_counter() - began, len(keys(endpoint))
                peak = max(peak, memory_mb(os.getpid()) - own_mb())
                if not seen or outputs > seen[-1][1]:
                    seen.append((now, outputs))
                if kill and struck is None and outputs >= KILL_AT:
                    os.kill(victim(), signal.SIGKILL)
                    struck = now
                hangs = now - seen[-1][0] > (STILL_S if outputs else START_S)
                if outputs >= IMAGES or (ended() and outputs == seen[-1][1]) or hangs:
                    break
                time.sleep(0.2)
            while not ended() and time.perf_counter() - began < now + STILL_S:
                time.sleep(0.05)
            wall = time.perf_counter() - began
        made = len(keys(endpoint))  # once more: the last may have come between the look and the end
        counts = json.loads(urllib.request.urlopen(f"{endpoint}/-/counts").read())
    first, last = seen[1] if len(seen) > 1 else seen[0], seen[-1]
    return {
        "first_output_s": round(first[0], 1),
        "images_s": round((last[1] - first[1]) / max(1e-9, last[0] - first[0]), 1),
        "wall_s": round(wall, 1),
        "peak_mb": round(peak),
        "missing": IMAGES - made,
        "done_twice": counts.get("outputs_put", 0) - made,
        "stood_still_s": None if struck is None else round(longest_pause(seen, struck), 1),
    }


def longest_pause(seen: list[tuple[float, int]], since: float) -> float:
    """The longest time without an output after a moment."""
    moments = [moment for moment, _ in seen if moment >= since - 1]
    return max((late - early for early, late in pairwise(moments)), default=float("nan"))


@contextmanager
def vdsr_fleet(folder: Path, environment: dict[str, str]) -> Iterator[tuple[Callable[[], bool], Callable[[], int]]]:
    """A Redis, two workers, `vdsr submit`."""
    from worker.embedded import LocalRedis, guarded, worker_command, worker_environment
    from worker.ledger import Ledger
    from worker.settings import load_settings

    given = environment | {"VDSR_CHUNK_IMAGES": "20", "VDSR_THREADS": "1"}
    with LocalRedis(folder), ExitStack() as stack:
        env = worker_environment(load_settings(given)) | given
        guards = [
            stack.enter_context(guarded(worker_command(name=f"w{n}@%h"), log=folder / f"{n}.log", cwd=folder, env=env))
            for n in range(2)
        ]
        vdsr = Path(sys.executable).with_name("vdsr")
        words = ["submit", f"s3://bucket/{IMAGES}", "s3://bucket/out", "--model", f"timed:{SECONDS}", "--no-score"]
        job_id = subprocess.check_output([vdsr, *words], env=env, text=True).strip()
        ledger = Ledger(env["VDSR_REDIS_URL"])

        def victim() -> int:
            celery = children(guards[0].pid)[0]
            return next(pid for pid in children(celery) if b"spawn_main" in command_line(pid))

        yield lambda: ledger.record(job_id).state.ended, victim


def script(python: Path, way: str) -> Callable[..., Any]:
    """A way that is a process of this file."""

    @contextmanager
    def start(folder: Path, environment: dict[str, str]) -> Iterator[tuple[Callable[[], bool], Callable[[], int]]]:
        command = [str(python), __file__, "--way", way]
        environment |= {"RAY_worker_niceness": "0"}  # 15 by default, which starves it beside whatever else runs
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield lambda: process.poll() is not None, lambda: worker_of(process.pid) if way == "ray" else process.pid
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.returncode not in (0, -signal.SIGKILL, -signal.SIGTERM):
                print((folder / "log").read_text(errors="replace")[-2000:], file=sys.stderr)

    return start


def by_script() -> None:
    """What one writes in an hour: a loop."""
    do = Worker()
    for key in do.source_keys():
        do.one(key)


def by_ray() -> None:
    """As Ray's documentation has it: a dataset of keys, an actor pool that holds the model."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    keys = [{"key": key} for key in Worker().source_keys()]
    dataset = ray.data.from_items(keys).map_batches(OnRay, concurrency=2, batch_size=20)
    print(dataset.count())


class OnRay:
    """An actor."""

    def __init__(self) -> None:
        self.worker = Worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do a batch of keys."""
        for key in batch["key"]:
            self.worker.one(str(key))
        return {"key": batch["key"]}


class Worker:
    """Reads, upscales and writes by the same code that vdsr's workers call."""

    def __init__(self) -> None:
        sys.path.insert(0, str(HERE.parent))
        from vdsr.stand_in import make_stand_in
        from worker.settings import load_settings
        from worker.uris import open_storage

        settings = load_settings()
        self.upscaler = make_stand_in(f"timed:{SECONDS}")
        self.source = open_storage(f"s3://bucket/{IMAGES}", settings)
        self.target = open_storage("s3://bucket/out", settings)

    def source_keys(self) -> list[str]:
        """What there is to do."""
        return [entry.key for entry in self.source.entries()]

    def one(self, key: str) -> None:
        """A picture."""
        from worker.images import decode, encode

        picture = decode(self.source.read(key), max_pixels=10**8)
        pixels = self.upscaler.upscale(picture.pixels, 2)
        self.target.write(key, encode(pixels, "PNG", picture.extras, quality=None))


def keys(endpoint: str) -> list[str]:
    """Outputs that are there."""
    return json.loads(urllib.request.urlopen(f"{endpoint}/-/outputs").read())


def worker_of(driver: int) -> int:
    """A process of Ray's that has an actor of ours."""
    return next(pid for pid in descendants(driver) if b"OnRay" in command_line(pid))


def children(pid: int) -> list[int]:
    """Processes that it has started, by any of its threads."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All below a process."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def command_line(pid: int) -> bytes:
    """Of a process; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def memory_mb(pid: int) -> float:
    """What a process and all below it hold, shared pages once (PSS)."""
    return sum(map(pss_mb, (pid, *descendants(pid))))


def own_mb() -> float:
    """This program's and the bucket's."""
    served = [pid for pid in descendants(os.getpid()) if b"bucket.py" in command_line(pid)]
    return pss_mb(os.getpid()) + sum(map(pss_mb, served))


def pss_mb(pid: int) -> float:
    """Of one process."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    return 0.0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what it started ends, too
    main()
