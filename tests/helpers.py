"""What tests of the service share: a client's view of running workers, and pictures to work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdsr import checkpoint, smoke
from vdsr.upscale import Upscaler
from worker.client import Client, draft
from worker.embedded import guarded, worker_command, worker_environment
from worker.jobs import Image as JobImage
from worker.jobs import Job, Model, Options, Outcome
from worker.parts import Parts, final_rows
from worker.pipeline import Pipeline
from worker.registry import Registry, Version
from worker.settings import Settings, load_settings
from worker.summary import summarise
from worker.uris import open_storage

VDSR = str(Path(sys.executable).with_name("vdsr"))


@dataclass(frozen=True)
class Service:
    """Redis and two workers, as an operator would run them, with the client's side of it."""

    client: Client
    settings: Settings
    workers: list[subprocess.Popen[bytes]]
    folder: Path
    """Where the workers run and log."""
    environment: dict[str, str]

    def submit(
        self,
        source: str | Path,
        destination: str | Path | None = None,
        *,
        model: str | None = None,
        **options: object,
    ) -> str:
        """Queue a job; its id."""
        target = None if destination is None else str(destination)
        return self.client.submit(draft(str(source), target, Options(**options), self.settings, model=model))

    def run(self, source: str | Path, destination: str | Path | None = None, **options: object) -> dict:
        """Do a job to its end; its summary."""
        return self.wait(self.submit(source, destination, **options))

    def wait(self, job_id: str, *, timeout_s: float = 400, patience_s: float = 0) -> dict:
        """The summary of a job once it has ended; Redis may be away for `patience_s`."""
        record = self.client.wait(job_id, timeout_s=timeout_s, patience_s=patience_s)
        assert record is not None, self.client.ledger.record(job_id)
        return summarise(record)

    def rows(self, job_id: str) -> dict[str, Outcome]:
        """The outcome of every image."""
        return final_rows(Parts(self.client.ledger.record(job_id).job, self.settings))

    def children(self) -> list[int]:
        """Process ids of the workers' pool processes, which do the work."""
        return [child for worker in self.workers for parent in children_of(worker.pid) for child in pool_of(parent)]


@contextmanager
def running_service(redis_url: str, folder: Path, environment: dict[str, str], count: int = 2) -> Iterator[Service]:
    """Workers on a Redis, under their guards, once they have reported.

    They run without root's privilege to read and write whatever it likes: as other users do.
    """
    own = {
        **worker_environment(load_settings({"VDSR_REDIS_URL": redis_url})),
        "VDSR_THREADS": "1",
        "VDSR_LEASE_S": "6",
        "VDSR_CHUNK_IMAGES": "25",
        "VDSR_REGISTRY": str(folder / "models"),
        "VDSR_RUNS": str(folder / "runs"),
        "VDSR_CACHE_DIR": str(folder / "cache"),
        **environment,
    }
    settings = load_settings(own)
    client = Client.connect(settings)
    with ExitStack() as running:
        workers = [
            running.enter_context(
                guarded(
                    [*UNPRIVILEGED, *worker_command(name=f"{n}-{os.getpid()}@%h")],
                    log=folder / f"{n}.log",
                    cwd=folder,
                    env=own,
                )
            )
            for n in range(count)
        ]
        wait_until(lambda: len(client.workers()) == count, 120)
        yield Service(client, settings, workers, folder, own)


UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
"""Goes before a command: root obeys the permissions of files, too."""


def vdsr(state: dict[str, str], *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [VDSR, *map(str, words)]
    return subprocess.run(command, env={**state, **more}, capture_output=True, text=True, timeout=120, check=False)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Look again and again until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [child for child, parent in _processes() if parent == pid]


def pool_of(celery: int) -> list[int]:
    """The processes of a Celery worker that do its work."""
    found = []
    for pid in children_of(celery):
        with suppress(OSError):  # it has ended meanwhile
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory that a process holds; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def owner_of(port: int, pids: Iterable[int]) -> int | None:
    """Which of these processes has a TCP connection from this local port."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{words[9]}]")
    for pid in pids:
        with suppress(OSError):
            if any(os.readlink(link) in inodes for link in _links(pid)):
                return pid
    return None


def _links(pid: int) -> Iterator[Path]:
    """The open files of a process."""
    yield from Path(f"/proc/{pid}/fd").iterdir()


def _processes() -> list[tuple[int, int]]:
    """(process, parent) of everything that runs."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            found.append((int(folder.name), int(stat.rpartition(")")[2].split()[1])))
    return found


def make_weights(seed: int, version: str = "made") -> bytes:
    """A small change of the weights that ship."""
    model, _ = checkpoint.load()
    with torch.no_grad():
        model.kernels[-1].mul_(1 + seed / 1000)
    return checkpoint.to_bytes(model, version=version)


def published(registry: Registry, name: str, seed: int = 1) -> Version:
    """A version in a registry, as a publisher makes it."""
    data = make_weights(seed, name)
    return registry.publish(
        data, name=name, smoke=smoke.record(Upscaler(data, device="cpu", precision="fp32")), metrics={}
    )


def make_photos(folder: Path, count: int, size: tuple[int, int] = (24, 16)) -> Path:
    """Smooth random pictures, PNG and JPEG, half of them in a subfolder."""
    rng = np.random.default_rng(count)
    for n in range(count):
        path = folder / ("sub" if n % 2 else ".") / f"{n:04d}.{'png' if n % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    return folder


def kill(pid: int) -> None:
    """As the kernel does when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def pipeline(folder: Path, *, budget: str = "2G", engine: str = "auto", **options: Any) -> Pipeline:
    """The line from a folder to its neighbour, without a queue."""
    settings = load_settings({"VDSR_MEMORY_BUDGET": budget})
    model = checkpoint.identify()
    job = Job("j", str(folder), f"{folder}-x2", Options(**options), Model(model.version, model.sha256), created=1.0)
    return Pipeline(
        job,
        Upscaler(device="cpu", engine=engine),
        settings,
        source=open_storage(job.source, settings),
        target=open_storage(job.destination, settings),
        reference=None,
    )


def run_line(line: Pipeline, names: list[str]) -> list[Outcome]:
    """The outcomes of these files."""
    images = [(n, JobImage(name, 1, "", name, None)) for n, name in enumerate(names)]
    return [row for rows in line.run(images, on_start=lambda n: None, on_tile=lambda: None) for _, row in rows]
