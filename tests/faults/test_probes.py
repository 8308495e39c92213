"""What `vdsr health` says of real workers is so: starting, idle, busy, stuck, deaf, and cut off from Redis."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import make_photos, vdsr, wait_until
from rig import BreakableRedis, Node
from servers import Hold, Proxy, S3Server

from worker.app import make_app
from worker.client import Client, draft
from worker.embedded import worker_environment
from worker.fleet import Fleet
from worker.jobs import Options
from worker.settings import load_settings
from worker.storage.s3 import clients

WITHIN_S = 4
"""Word of a worker comes every second or two; where it must never fail to come, more is allowed."""


@dataclass(frozen=True)
class Watched:
    """A worker with a folder for its health, and its Redis."""

    redis: BreakableRedis
    node: Node
    environment: dict[str, str]

    def ask(self, probe: str, within_s: int = WITHIN_S) -> subprocess.CompletedProcess[str]:
        """What a probe of Kubernetes would be told."""
        return vdsr(self.environment, "health", probe, "--within", str(within_s))

    def is_well(self, probe: str) -> bool:
        """Whether the probe passes."""
        return self.ask(probe).returncode == 0

    @property
    def client(self) -> Client:
        """Of its Redis."""
        return Client.connect(load_settings(self.environment))

    def submit(self, source: str, destination: str) -> str:
        """Queue a job; its id."""
        settings = load_settings(self.environment)
        return self.client.submit(draft(source, destination, Options(), settings))


@contextmanager
def watched(folder: Path, **more: str) -> Iterator[Watched]:
    """A worker that has just been started."""
    place = Path(tempfile.mkdtemp(prefix="vdsr-"))  # short, for a socket's path
    redis = BreakableRedis(place)
    environment = {
        **worker_environment(load_settings({"VDSR_REDIS_URL": redis.url})),
        "VDSR_HEALTH_DIR": str(folder / "health"),
        "VDSR_STATE_DIR": str(folder / "state"),
        "VDSR_CACHE_DIR": str(folder / "cache"),
        "VDSR_THREADS": "1",
        **more,
    }
    node = Node("watched", folder, environment)
    try:
        yield Watched(redis, node, environment)
    finally:
        node.go_on()
        node._stack.close()
        redis.close()
        shutil.rmtree(place)


@pytest.mark.redis
def test_a_worker_is_alive_and_ready_when_it_can_work_and_dead_while_it_is_stopped_or_redis_is_gone(
    tmp_path: Path,
) -> None:
    with watched(tmp_path) as here:
        before = here.ask("--live")
        wait_until(lambda: here.is_well("--live"), 120)
        wait_until(lambda: here.is_well("--ready"), 120)
        ready = here.ask("--ready").stdout

        here.node.pause()
        wait_until(lambda: not here.is_well("--live"), 60)
        paused = here.ask("--live").stderr
        here.node.go_on()
        wait_until(lambda: here.is_well("--ready"), 60)

        here.redis.kill()
        wait_until(lambda: not here.is_well("--live"), 60)
        here.redis.start()
        wait_until(lambda: here.is_well("--ready"), 120)

        here.node.kill_child()
        wait_until(lambda: bool(here.node.children) and here.is_well("--ready"), 120)

    assert before.returncode == 1
    assert "no word of a worker in" in before.stderr
    assert "2026.11 loaded by process" in ready
    assert "the worker hangs, takes no work, or cannot reach Redis" in paused


@pytest.mark.redis
@pytest.mark.faults
def test_a_worker_that_is_connected_and_no_longer_asks_for_work_is_dead(tmp_path: Path) -> None:
    with watched(tmp_path) as here:
        wait_until(lambda: here.is_well("--live"), 120)
        wait_until(lambda: len(here.client.workers()) == 1, 60)
        app = make_app(load_settings(here.environment))

        app.control.cancel_consumer("upscale")

        wait_until(lambda: not here.is_well("--live"), 60)
        assert len(here.client.workers()) == 1, "it still reports to Redis"
        app.control.add_consumer("upscale")
        wait_until(lambda: here.is_well("--live"), 60)


@pytest.fixture
def held(bucket: str, s3_server: S3Server, tmp_path: Path) -> Iterator[tuple[dict[str, str], Hold, str]]:
    """A server that keeps back one image for as long as a test likes: settings for it, the image, and the bucket."""
    photo = make_photos(tmp_path / "photos", 1) / "0000.jpg"
    clients.get(s3_server.endpoint_url, None).put_object(Bucket=bucket, Key="in/a.jpg", Body=photo.read_bytes())
    host, _, port = s3_server.endpoint_url.removeprefix("http://").partition(":")
    with Proxy((host, int(port))) as way:
        hold = way.hold(f"GET /{bucket}/in/a.jpg".encode())
        yield {"VDSR_S3_ENDPOINT_URL": f"http://127.0.0.1:{way.port}"}, hold, bucket


@pytest.mark.redis
@pytest.mark.s3
@pytest.mark.faults
def test_a_worker_in_a_long_image_is_alive_all_the_time_and_counts_as_busy(
    tmp_path: Path, held: tuple[dict[str, str], Hold, str]
) -> None:
    settings, hold, bucket = held
    with watched(tmp_path, **settings) as here:
        wait_until(lambda: here.is_well("--ready"), 240)
        fleet = Fleet(here.environment["VDSR_REDIS_URL"])
        job = here.submit(f"s3://{bucket}/in", f"s3://{bucket}/out")
        wait_until(lambda: bool(hold.ports), 120)

        reached, told = time.monotonic(), []
        while time.monotonic() - reached < 20:
            told.append(here.ask("--live", within_s=10))
            time.sleep(0.2)
        busy = fleet._redis.do("zrange", "vdsr:busy:upscale", 0, -1)
        hold.release()

        assert {probe.returncode for probe in told} == {0}, told
        assert [name.partition("@")[0] for name in busy] == ["watched"]
        wait_until(lambda: here.client.ledger.record(job).state.ended, 120)
        wait_until(lambda: fleet._redis.do("zcard", "vdsr:busy:upscale") == 0, 60)
        assert here.client.ledger.record(job).counters["done"] == 1


@pytest.mark.redis
@pytest.mark.s3
@pytest.mark.faults
def test_a_worker_that_stays_at_the_same_step_for_too_long_is_dead(
    tmp_path: Path, held: tuple[dict[str, str], Hold, str]
) -> None:
    settings, hold, bucket = held
    with watched(tmp_path, VDSR_STUCK_S="2", **settings) as here:
        wait_until(lambda: here.is_well("--ready"), 240)
        here.submit(f"s3://{bucket}/in", f"s3://{bucket}/out")
        wait_until(lambda: bool(hold.ports), 120)

        wait_until(lambda: not here.is_well("--live"), 60)

        hold.release()
        wait_until(lambda: here.is_well("--live"), 60)
