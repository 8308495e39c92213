"""A real Redis and real workers for the tests of the service."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from helpers import Service, make_photos, wait_until

from worker.app import TRAINING
from worker.client import Client
from worker.embedded import LocalRedis, guarded, worker_command, worker_environment
from worker.settings import load_settings


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server with an append-only file, shared by the session: jobs have ids of their own."""
    yield from _redis()


@pytest.fixture(scope="session")
def quiet_redis_url() -> Iterator[str]:
    """Another one, without workers: nobody else sweeps what a test has left overdue."""
    yield from _redis()


def _redis() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))  # short, unlike pytest's: a socket's path has 104 bytes
    with LocalRedis(folder) as redis:
        yield redis.url
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def service(redis_url: str, s3_server: servers.S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two worker processes on the shared Redis, with the credentials of the S3 server."""
    folder = tmp_path_factory.mktemp("workers")
    environment = {
        **worker_environment(load_settings({"VDSR_REDIS_URL": redis_url})),
        "VDSR_S3_ENDPOINT_URL": s3_server.endpoint_url,
        "VDSR_THREADS": "1",
        "VDSR_LEASE_S": "6",
        "VDSR_CHUNK_IMAGES": "25",
        "VDSR_MAX_PIXELS": "1000000",
        "VDSR_REGISTRY": str(folder / "models"),
        "VDSR_RUNS": str(folder / "runs"),
        "VDSR_CACHE_DIR": str(folder / "cache"),
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    settings = load_settings(environment)
    client = Client.connect(settings)
    first = guarded(worker_command(name="one@%h"), log=folder / "one.log", cwd=folder, env=environment)
    second = guarded(worker_command(name="two@%h"), log=folder / "two.log", cwd=folder, env=environment)
    with first as one, second as two:
        service = Service(client, settings, [one, two], folder, environment)
        wait_until(lambda: len(client.workers()) == 2)
        yield service


@pytest.fixture(scope="session")
def training(service: Service) -> Iterator[Service]:
    """The same, with a worker that trains."""
    folder, environment = service.folder, service.environment
    command = worker_command(name="trainer@%h", queue=TRAINING)
    with guarded(command, log=folder / "trainer.log", cwd=folder, env=environment) as worker:
        trainer = dataclasses.replace(service, workers=[worker])
        wait_until(lambda: len(service.client.fleet.workers(TRAINING)) == 1)
        yield trainer


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of thirty small pictures in two folders."""
    return make_photos(tmp_path / "photos", 30)
