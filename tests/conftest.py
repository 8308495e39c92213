"""Fixtures that several test modules share. A missing server skips a test on a laptop and fails it in CI."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator

import pytest
import servers

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell starts tests in the background


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """A real S3 server, the same for all tests."""
    try:
        servers.weed_binary()
    except servers.ServerMissing as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))
    with servers.s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of whoever runs the tests, and no question to the cloud's metadata service for others."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(s3_server: servers.S3Server, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new, empty bucket, with the credentials for it in the environment."""
    from worker.storage.s3 import clients

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    client = clients.get(s3_server.endpoint_url, None)
    name = f"test-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    yield name
    client.delete_bucket(Bucket=name)  # SeaweedFS deletes what is in it, too, and frees its volume
