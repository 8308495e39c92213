"""An environment of its own for each test of the command line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def state() -> Iterator[dict[str, str]]:
    """A state folder whose path is short enough for a socket, and nobody's settings."""
    folder = tempfile.mkdtemp(prefix="vdsr-")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VDSR_")}
    own = {
        "XDG_CONFIG_HOME": f"{folder}/config",
        "VDSR_STATE_DIR": folder,
        "VDSR_CACHE_DIR": f"{folder}/cache",
        "VDSR_THREADS": "1",
        "VDSR_LEASE_S": "5",
    }
    yield {**clean, **own}
    shutil.rmtree(folder, ignore_errors=True)
