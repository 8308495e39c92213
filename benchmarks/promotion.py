"""How soon does a running worker use what was promoted? On a Redis and a worker of its own, under load and idle.

python benchmarks/promotion.py --promotions 10

Each promotion is timed until its model first stands in results: under load, a job that follows production while its
chunks go on; idle, the first image that is asked for afterwards. Every image must be done, and no pinned job may have
two digests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vdsr import checkpoint
from worker.client import Client, draft
from worker.embedded import SOCKET, LocalRedis, LocalWorker
from worker.jobs import Options
from worker.parts import Parts
from worker.registry import PRODUCTION, Registry, Version
from worker.settings import load_settings
from worker.training.publish import announce, publish

PER_PROMOTION = 40
"""Images of each of the two jobs, so that there is work left at every promotion."""


def main() -> None:
    """The command."""
    os.environ["VDSR_CHUNK_IMAGES"] = "4"  # a chunk of seconds: what is measured is the delay
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--promotions", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vdsr-") as name:
        folder = Path(name)
        settings = dataclasses.replace(
            load_settings(),
            redis_url=f"unix://{folder / SOCKET}",
            registry=str(folder / "models"),
            grace_s=0,
        )
        with LocalRedis(folder), LocalWorker(settings, folder):
            print(json.dumps(_measured(folder, Client.connect(settings), args.promotions), indent=1))


def _measured(folder: Path, client: Client, promotions: int) -> dict[str, object]:
    registry = Registry(client.settings)
    versions = [_version(registry, n) for n in range(promotions + 1)]
    _promote(client, registry, versions[0])
    few, many = _photos(folder / "few", 1), _photos(folder / "many", PER_PROMOTION * promotions)
    _done(client, few, folder / "warm-up")
    idle = []
    for n, version in enumerate(versions[1:]):
        started = _promote(client, registry, version)
        models = _done(client, few, folder / f"idle-{n}")
        assert models == {version.sha256}, "an idle worker used an old model"
        idle.append(time.monotonic() - started)

    _promote(client, registry, versions[0])
    pinned = draft(str(many), str(folder / "pinned"), Options(score=False), client.settings)
    following = draft(str(many), str(folder / "following"), Options(score=False), client.settings, model="follow")
    for job in (pinned, following):
        client.submit(job)
    busy = []
    for version in versions[1:]:
        seen = len(_chunks(client, following.id))
        while len(_chunks(client, following.id)) < seen + 2:  # it works, and has work left
            _check_running(client, following.id)
        started = _promote(client, registry, version)
        while version.sha256 not in _chunks(client, following.id).values():
            _check_running(client, following.id)
        busy.append(time.monotonic() - started)
    for job in (pinned, following):
        record = client.wait(job.id)
        assert record is not None
        assert record.counters["done"] == PER_PROMOTION * promotions, "an image was lost"
        assert not record.counters.get("failed"), "an image failed"
    digests = set(_chunks(client, pinned.id).values())
    assert digests == {versions[0].sha256}, "a pinned job has two digests"
    return {
        "processor": _processor(),
        "images": 2 * PER_PROMOTION * promotions,
        "failed": 0,
        "pinned_job_digests": len(digests),
        "following_job_digests": len(set(_chunks(client, following.id).values())),
        "idle_s": _spread(idle),
        "under_load_s": _spread(busy),
    }


def _check_running(client: Client, job_id: str) -> None:
    assert not client.ledger.record(job_id).state.ended, "the job ended before its promotions: give it more images"
    time.sleep(0.02)


def _version(registry: Registry, number: int) -> Version:
    model, _ = checkpoint.load()
    with torch.no_grad():
        model.kernels[-1].mul_(1 + number / 10_000)
    name = f"v{number}"
    return publish(registry, checkpoint.to_bytes(model, version=name), name=name, metrics={})


def _promote(client: Client, registry: Registry, version: Version) -> float:
    alias = registry.promote(version, over=registry.alias(PRODUCTION))
    started = time.monotonic()
    announce(client.fleet, alias)
    return started


def _photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(count):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / f"{n:05d}.png")
    return folder


def _done(client: Client, photos: Path, target: Path) -> set[str]:
    job = draft(str(photos), str(target), Options(score=False), client.settings, model="follow")
    client.submit(job)
    client.wait(job.id)
    return set(_chunks(client, job.id).values())


def _chunks(client: Client, job_id: str) -> dict[int, str]:
    """The model of each chunk that is written down; more than one in a chunk is an error."""
    models = {}
    for chunk, rows in Parts(client.ledger.record(job_id).job, client.settings).all_results():
        used = {row.model for row in rows}
        assert len(used) == 1, "a chunk has two digests"
        models[chunk] = str(*used)
    return models


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "largest": round(max(seconds), 3)}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
