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

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
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


def documented_user(name: str = "worker", password: str = PASSWORD) -> str:
    """A line of the ACL file that is given to operators, with a password."""
    (line,) = re.findall(rf"^user {name} on .*$", USERS.read_text(), re.MULTILINE)
    found = f">{name.upper()}-PASSWORD"
    assert line.count(found) == 1
    return str(line).replace(found, f">{password}")
