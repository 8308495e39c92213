"""What tests of the service share: a client's view of running workers, and pictures to work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vdsr import checkpoint, smoke
from vdsr.upscale import Upscaler
from worker.client import Client, draft
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
        job = draft(str(source), target, Options(**options), self.settings, model=model)
        self.client.submit(job)
        return job.id

    def run(self, source: str | Path, destination: str | Path | None = None, **options: object) -> dict:
        """Do a job to its end; its summary."""
        return self.wait(self.submit(source, destination, **options))

    def wait(self, job_id: str) -> dict:
        """The summary of a job once it has ended."""
        record = self.client.wait(job_id, timeout_s=400)
        assert record is not None, self.client.ledger.record(job_id)
        return summarise(record)

    def rows(self, job_id: str) -> dict[str, Outcome]:
        """The outcome of every image."""
        return final_rows(Parts(self.client.ledger.record(job_id).job, self.settings))

    def children(self) -> list[int]:
        """Process ids of the workers' pool processes, which do the work."""
        guards = {worker.pid for worker in self.workers}
        parents = {pid for pid, parent in _processes() if parent in guards}
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid, parent in _processes() if parent in parents}
        return [pid for pid, name in names.items() if b"spawn_main" in name]


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
    return registry.publish(data, name=name, smoke=smoke.record(Upscaler(data, device="cpu")), metrics={})


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
    return [row for _, row in line.run(images, on_start=lambda n: None, on_tile=lambda: None)]
