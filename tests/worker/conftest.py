"""A real Redis for the tests of the service."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.embedded import local_redis


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real server with an append-only file, shared by the session: jobs have ids of their own."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))  # short, unlike pytest's: a socket's path has 104 bytes
    with local_redis(folder) as url:
        yield url
    shutil.rmtree(folder)
