"""What tests under faults share: the table of what each fault cost, and a service as a careful operator runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import redis
import servers
from faults.secured import ADMIN, PASSWORD, Secured, documented_user
from helpers import Service, wait_until
from tally import Tally, table, write_json

from worker.client import Client
from worker.embedded import guarded, worker_command, worker_environment
from worker.settings import load_settings

_tallies: list[Tally] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """A row of the table; the test says which."""
    made = Tally("")
    yield made
    request.node.user_properties.append(("tally", asdict(made)))  # also from another process, which xdist starts


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take a row from a test that has ended."""
    if report.when == "teardown":
        _tallies.extend(Tally(**found) for name, found in report.user_properties if name == "tally")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, and the same in the file that FAULTS_JSON names."""
    tallies = [tally for tally in _tallies if tally.runs]
    if not tallies:
        return
    terminalreporter.section("what faults cost")
    terminalreporter.write_line(table(tallies))
    if path := os.environ.get("FAULTS_JSON"):
        write_json(Path(path), tallies)


@pytest.fixture(scope="session")
def secure_redis() -> Iterator[servers.SecureRedis]:
    """Redis with TLS; nobody but these two is let in."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    users = [documented_user(name) for name in ("worker", "submitter", "exporter")]
    users.append(f"user admin on >{ADMIN} ~* &* +@all")
    try:
        with servers.secure_redis(folder, users) as server:
            yield server
    except servers.ServerMissing as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def secured(
    secure_redis: servers.SecureRedis, s3_server: servers.S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """A worker of that Redis."""
    folder = tmp_path_factory.mktemp("secured")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VDSR_", "AWS_"))}
    environment = {
        **clean,
        "VDSR_REDIS_URL": secure_redis.url("worker", PASSWORD),
        "VDSR_REDIS_CA": str(secure_redis.authority),
        "VDSR_STATE_DIR": str(folder / "state"),
        "VDSR_S3_ENDPOINT_URL": s3_server.endpoint_url,
        "VDSR_THREADS": "1",
        "VDSR_LEASE_S": "6",
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    settings = load_settings(environment)
    environment = {**worker_environment(settings), **environment}
    admin = redis.Redis.from_url(secure_redis.url("admin", ADMIN), ssl_ca_certs=str(secure_redis.authority))
    client = Client.connect(settings)
    command = worker_command(name="secured@%h", level="DEBUG")  # whatever may leak, leaks there
    with guarded(command, log=folder / "worker.log", cwd=folder, env=environment) as worker:
        workers: list[subprocess.Popen[bytes]] = [worker]
        wait_until(lambda: len(client.workers()) == 1, 120)
        yield Secured(Service(client, settings, workers, folder, environment), secure_redis, admin)
