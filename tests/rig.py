"""A fleet that is there to be broken: a real Redis, real workers and the way between them, each to be killed or cut."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from helpers import Service, children_of, pool_of, rss_bytes, wait_until
from servers import Proxy, S3Server

from worker.client import Client
from worker.embedded import LocalRedis, guarded, worker_command, worker_environment
from worker.settings import load_settings

LEASE_S = 6
"""Shorter than in production, so that tests are; what is measured with the default says so."""


class BreakableRedis:
    """A Redis with an append-only file that can be killed, stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = LocalRedis(folder)
        self._server.__enter__()

    @property
    def url(self) -> str:
        """Of its socket."""
        return self._server.url

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._server.socket

    @property
    def pid(self) -> int:
        """Of the server itself, not of its guard."""
        return children_of(self._server._process.pid)[0]

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)
        self._server.__exit__(None, None, None)

    def start(self) -> None:
        """With the append-only file that the last one left."""
        self._server = LocalRedis(self.folder)
        self._server.__enter__()

    def stall(self, seconds: float) -> None:
        """Accept connections and answer nothing for a while."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._server.__exit__(None, None, None)


class Node:
    """A worker as a supervisor sees it: Celery, and its child that does the work."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], *, inside: Sequence[str] = ()) -> None:
        """
        Args:
            inside: a command that runs it somewhere else, such as in a network namespace.
        """
        self.name, self.folder, self.environment, self.inside = name, folder, dict(environment), inside
        self.log = folder / f"{name}.log"
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        """Begin its life, or another one."""
        self._stack.close()
        command = [*self.inside, *worker_command(name=f"{self.name}@%h")]
        process = guarded(command, log=self.log, cwd=self.folder, env=self.environment)
        self.guard: subprocess.Popen[bytes] = self._stack.enter_context(process)
        wait_until(lambda: bool(children_of(self.guard.pid)))
        self.celery = children_of(self.guard.pid)[0]

    @property
    def children(self) -> list[int]:
        """Process ids of its pool."""
        return pool_of(self.celery)

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self.guard.poll() is not None

    @property
    def rss_bytes(self) -> int:
        """Memory of all its processes."""
        return sum(map(rss_bytes, [self.celery, *self.children]))

    def kill(self) -> None:
        """All of it at once, as when its machine goes."""
        with suppress(ProcessLookupError):
            os.killpg(self.celery, signal.SIGKILL)  # the guard made it a group of its own
        self.guard.wait()

    def kill_celery(self) -> None:
        """Celery's process alone; its child dies with it."""
        with suppress(ProcessLookupError):
            os.kill(self.celery, signal.SIGKILL)
        self.guard.wait()

    def kill_child(self, how: signal.Signals = signal.SIGKILL) -> bool:
        """The process that does the work; False if there was none just now."""
        for pid in self.children:
            with suppress(ProcessLookupError):
                os.kill(pid, how)
                return True
        return False

    def ask_to_stop(self) -> None:
        """As a spot notice or a supervisor does."""
        with suppress(ProcessLookupError):
            os.kill(self.celery, signal.SIGTERM)

    def pause(self) -> None:
        """Stop its processes where they are."""
        with suppress(ProcessLookupError):
            os.killpg(self.celery, signal.SIGSTOP)

    def go_on(self) -> None:
        """After a pause."""
        with suppress(ProcessLookupError):
            os.killpg(self.celery, signal.SIGCONT)

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        """End it, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.celery, signal.SIGKILL)
        self._stack.close()


@dataclass
class Rig:
    """The fleet, and a client's view of it that no fault of the fleet's connections disturbs."""

    redis: BreakableRedis
    service: Service
    nodes: list[Node]
    redis_way: Proxy
    """Between the workers and Redis."""
    s3_way: Proxy | None
    """Between the workers and S3."""

    def add(self, name: str) -> Node:
        """One more worker; returns when it reports."""
        node = Node(name, self.service.folder, self.service.environment)
        self.nodes.append(node)
        self.wait_for(node)
        return node

    def wait_for(self, node: Node) -> None:
        """Until a worker reports."""
        wait_until(lambda: any(name.startswith(f"{node.name}@") for name in self.service.client.workers()), 120)

    def leases(self, job_id: str) -> dict[str, str]:
        """Who owns which chunk: number -> token."""
        return dict(self.service.client.ledger._redis.do("hgetall", f"vdsr:{{{job_id}}}:lease"))

    def progress(self, job_id: str, chunk: int = 0) -> dict[str, str]:
        """What the ledger knows about an open chunk."""
        return dict(self.service.client.ledger._redis.do("hgetall", f"vdsr:{{{job_id}}}:progress:{chunk}"))

    def counted(self, job_id: str) -> int:
        """Images that have an outcome."""
        counters = self.service.client.ledger.record(job_id).counters
        return int(sum(counters.get(name, 0) for name in ("done", "failed", "skipped")))


@contextmanager
def rig(names: list[str], *, s3: S3Server | None = None, **settings: str | int) -> Iterator[Rig]:
    """A fleet of workers with these names; settings by their names without VDSR_."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))  # short: a socket's path has 104 bytes
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = BreakableRedis(folder)
        stack.callback(redis.close)
        redis_way = stack.enter_context(Proxy(redis.socket))
        mine = load_settings({"VDSR_REDIS_URL": redis.url, "VDSR_STATE_DIR": str(folder)})
        environment = worker_environment(mine) | {
            "VDSR_REDIS_URL": f"redis://127.0.0.1:{redis_way.port}/0",
            "VDSR_CACHE_DIR": str(folder / "cache"),
            "VDSR_THREADS": "1",
            "VDSR_LEASE_S": str(LEASE_S),
        }
        s3_way = None
        if s3:
            host, _, port = s3.endpoint_url.removeprefix("http://").partition(":")
            s3_way = stack.enter_context(Proxy((host, int(port))))
            environment |= {
                "VDSR_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3_way.port}",
                "AWS_ACCESS_KEY_ID": s3.access_key,
                "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        environment |= {f"VDSR_{name.upper()}": str(value) for name, value in settings.items()}
        own = environment | {"VDSR_REDIS_URL": redis.url}
        if s3:
            own["VDSR_S3_ENDPOINT_URL"] = s3.endpoint_url
        client_settings = load_settings(own)
        service = Service(Client.connect(client_settings), client_settings, [], folder, environment)
        made = Rig(redis, service, [], redis_way, s3_way)
        stack.callback(lambda: [node.close() for node in made.nodes])
        for name in names:
            made.nodes.append(Node(name, folder, environment))
        for node in made.nodes:
            made.wait_for(node)
        yield made
