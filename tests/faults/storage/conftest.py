"""Workers that reach S3 through a proxy, and obey file permissions even as root."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Service, running_service
from proxy import Proxy, proxy_before
from servers import S3Server

from worker.embedded import LocalRedis
from worker.storage.s3 import S3Storage, clients

CREDENTIALS = """[default]
aws_access_key_id = {}
aws_secret_access_key = {}
"""


@pytest.fixture(scope="session")
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    """Before the S3 server of all tests; it spoils nothing unless it is told to."""
    with proxy_before(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture(scope="session")
def credentials_file(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers' credentials stand, for whoever rotates them."""
    path = tmp_path_factory.mktemp("aws") / "credentials"
    path.write_text(CREDENTIALS.format(s3_server.access_key, s3_server.secret_key))
    return path


@pytest.fixture(scope="session")
def service(proxy: Proxy, credentials_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Redis and two workers of their own, so that faults meet nobody else."""
    environment = {
        "VDSR_S3_ENDPOINT_URL": proxy.url,
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials_file),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (
        tempfile.TemporaryDirectory(prefix="vdsr-") as folder,
        LocalRedis(Path(folder)) as redis,
        running_service(redis.url, tmp_path_factory.mktemp("workers"), environment) as running,
    ):
        yield running


@pytest.fixture
def outside(bucket: str, s3_server: S3Server) -> S3Storage:
    """The test's bucket, past the proxy: what is really there."""
    return S3Storage(bucket, endpoint_url=s3_server.endpoint_url)


@pytest.fixture
def doomed_bucket(bucket: str, s3_server: S3Server) -> str:
    """Another bucket, which the test deletes."""
    name = f"doomed-{uuid.uuid4().hex}"
    clients.get(s3_server.endpoint_url, None).create_bucket(Bucket=name)
    return name
