"""What is known about a service that a careful operator runs: its secrets, and its documented permissions."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
import servers
from helpers import Service, wait_until

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PASSWORD = "p4ss-w0rd-of-redis-Zq7"
ADMIN = "p4ss-w0rd-of-admin-Kx3"


@dataclass(frozen=True)
class Secured:
    """A Redis with TLS and the documented permissions, and a worker on it with S3 credentials."""

    service: Service
    redis: servers.SecureRedis
    admin: redis.Redis
    """Who may do anything, and is not used by the service."""

    def restart_worker(self) -> None:
        """Kill the process that works, as the kernel does; its parent starts another."""
        children = self.service.children()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        wait_until(lambda: set(self.service.children()) - set(children) != set())


def documented_user() -> str:
    """The line of an ACL file that the documentation gives."""
    (line,) = re.findall(r"^user vdsr on .*$", OPERATIONS.read_text(), re.MULTILINE)
    assert line.count(">PASSWORD") == 1
    return str(line)
