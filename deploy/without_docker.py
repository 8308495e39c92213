"""How is the compose file tried where no Docker engine runs? Its commands are started as plain processes.

`python deploy/without_docker.py` starts the services of docker-compose.yml, with the commands and the environment that
stand there, and keeps them until Ctrl-C; with `--walk PAGE` it types the commands of a page against them and ends.
What a container has to itself comes from here: free ports of 127.0.0.1 for its name and ports, and folders of its own
for /tmp, its home and its volumes. Services whose program is not installed here are named and left out.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from worker.embedded import find_server, guarded

ROOT = Path(__file__).resolve().parents[1]
START_S = 300.0
ENTRYPOINTS = {"s3": ["weed"], "prometheus": ["prometheus"]}
"""What these images put before the command."""
INNER_PORTS = {"s3": ("master.port", "volume.port", "filer.port", "admin.port")}
"""Ports that no other service uses, so that the compose file leaves them to the program."""
MIRROR = 10_000
"""SeaweedFS takes each port's number plus this one as well."""


@dataclass(frozen=True)
class Service:
    """A service of the compose file, as a plain process of this machine."""

    name: str
    command: list[str]
    environment: dict[str, str]
    folder: Path
    port: int | None
    """At which others reach it, here."""
    health: list[str]
    """A command that ends with 0 once it is well; none where the compose file has none."""


@dataclass
class Plain:
    """The compose file, with what stands for its containers here."""

    folder: Path
    given: Mapping[str, str]
    """Variables that compose fills into the file."""
    leave: frozenset[str] = frozenset()
    """Services that are not wanted."""
    services: dict[str, Service] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Service -> why."""
    ports: dict[str, int] = field(default_factory=dict)
    """service:port of the file -> port here."""

    def __post_init__(self) -> None:
        document = yaml.safe_load(filled((ROOT / "docker-compose.yml").read_text(), self.given))
        chosen = {
            name: each
            for name, each in document["services"].items()
            if not each.get("profiles") and name not in self.leave
        }
        for name, each in chosen.items():
            for port in [*each.get("ports", []), *each.get("expose", [])]:
                self.ports[f"{name}:{port.rpartition(':')[2]}"] = free_port()
        for name, each in chosen.items():
            self._add(name, each)

    def words(self, service: str, words: Sequence[str]) -> list[str]:
        """A command as it is run here in the place of that service."""
        return [self._here(service, word) for word in words]

    def _add(self, name: str, each: dict[str, Any]) -> None:
        built = "build" in each
        words = each.get("command", [])
        words = [*ENTRYPOINTS.get(name, []), *(shlex.split(words) if isinstance(words, str) else words)]
        program = find_program(words[0]) if words else None
        if program is None:
            self.left_out[name] = f"{words[0] if words else each['image']} is not installed here"
            return
        mounts = [mount.split(":")[:2] for mount in each.get("volumes", []) if ":" in mount]
        missing = [source for source, _ in mounts if source[0] in "./" and not (ROOT / source).exists()]
        if missing:
            self.left_out[name] = f"{missing[0]} is not here"
            return
        here = self.folder / name
        (here / "home").mkdir(parents=True)
        for source, target in mounts:
            link = here / "root" / target.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if source.startswith((".", "/")):
                link.symlink_to((ROOT / source).resolve())
            else:
                link.mkdir()
        (here / "root" / "tmp").mkdir(parents=True, exist_ok=True)
        variables = {**(image_environment() if built else {}), **each.get("environment", {})}
        variables = {key: self._here(name, str(value)) for key, value in variables.items() if key != "PATH"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("VDSR_", "AWS_"))}
        health = each.get("healthcheck", {"test": image_health()} if built else {}).get("test", [])
        self.services[name] = Service(
            name,
            [str(program), *self.words(name, words[1:]), *self._inner(name)],
            {
                **clean,
                "HOME": str(here / "home"),
                "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
                **variables,
            },
            here / "home",
            next((port for key, port in self.ports.items() if key.startswith(f"{name}:")), None),
            health[1:],
        )

    def _here(self, service: str, word: str) -> str:
        """A word of a command or of the environment, with the addresses and paths of this machine."""
        for key, port in self.ports.items():
            owner, inner = key.split(":")
            word = re.sub(rf"\b{owner}:{inner}\b", f"127.0.0.1:{port}", word)
            if owner == service:
                word = re.sub(rf"\b{inner}\b", str(port), word)
        word = re.sub(rf"(-ip=){service}\b|\b0\.0\.0\.0\b", r"\g<1>127.0.0.1", word)
        root = self.folder / service / "root"
        return re.sub(r"(^|=)(/(?:data|tmp|photos|prometheus|etc/prometheus)\b)", rf"\g<1>{root}\g<2>", word)

    def _inner(self, name: str) -> list[str]:
        return [f"-{option}={free_port()}" for option in INNER_PORTS.get(name, ())]


def filled(text: str, given: Mapping[str, str]) -> str:
    """A compose file with `${NAME:-default}` replaced, as compose does."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], text)


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets for everything that runs in its image."""
    lines = re.findall(r"^ENV (.*)$", _runtime_stage(), re.M)
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


def image_health() -> list[str]:
    """The Dockerfile's health check, in compose's words."""
    found = re.search(r"^HEALTHCHECK .*CMD \[(.*)\]$", _runtime_stage(), re.M)
    assert found, "deploy/Dockerfile has no HEALTHCHECK"
    return ["CMD", *re.findall(r'"([^"]*)"', found[1])]


def _runtime_stage() -> str:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    return re.split(r"^FROM ", text.partition(" AS runtime\n")[2], flags=re.M)[0]


def find_program(name: str) -> Path | None:
    """Where a container's program is on this machine."""
    if name == "valkey-server":
        return find_server()
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return Path(found) if found else None


def free_port() -> int:
    """A port that nobody has just now, nor its mirror; below 32768, where Linux takes those of outgoing connections."""
    while True:
        port = random.randrange(10_240, 32_768 - MIRROR)  # noqa: S311  # no secret
        if _is_free(port) and _is_free(port + MIRROR):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def up(plain: Plain) -> Iterator[Plain]:
    """All services, running and well, until the block ends.

    Raises:
        RuntimeError: one has ended, or is not well after START_S.
    """
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                guarded(each.command, log=plain.folder / f"{name}.log", cwd=each.folder, env=each.environment)
            )
            for name, each in plain.services.items()
        }
        deadline = time.monotonic() + START_S
        for name, process in processes.items():
            while not is_well(plain.services[name]):
                log = plain.folder / f"{name}.log"
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} is not well; it said last:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.5)
        yield plain
        if process := processes.get("s3"):  # it would wait half a minute for connections that nobody uses any more
            assert process.stdin
            process.stdin.close()


def is_well(service: Service) -> bool:
    """Whether its health check passes, or its port answers."""
    if service.health and find_program(service.health[0]):
        return subprocess.run(service.health, env=service.environment, capture_output=True, check=False).returncode == 0
    if service.port is None:
        return True
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", service.port)) == 0


def walk(page: Path, folder: Path, given: Mapping[str, str], leave: frozenset[str] = frozenset()) -> dict[str, str]:
    """Type the first block of commands of a page; what each printed.

    `docker compose up` starts the plain processes, `exec` and `cp` act in the place of a service, `down` ends them; all
    other lines must be variables.

    Raises:
        RuntimeError: a command did not end well, or cannot be followed here.
    """
    variables = dict(given)
    said: dict[str, str] = {}
    with ExitStack() as stack:
        plain: Plain | None = None
        for line in commands(page):
            words = shlex.split(os.path.expandvars(line))
            if words[0] == "export":
                variables |= {**dict(word.split("=", 1) for word in words[1:]), **given}  # a test's come first
                said[line] = ""
            elif words[:3] == ["docker", "compose", "up"]:
                plain = stack.enter_context(up(Plain(folder, variables, leave)))
                said[line] = "\n".join(f"{name}: {why}" for name, why in plain.left_out.items())
            elif plain is not None and words[:3] == ["docker", "compose", "exec"]:
                said[line] = _exec(plain, words[3], words[4:])
            elif plain is not None and words[:3] == ["docker", "compose", "cp"]:
                service, _, path = words[3].partition(":")
                shutil.copy(plain.words(service, [path])[0], folder / words[4])
                said[line] = ""
            elif plain is not None and words[:3] == ["docker", "compose", "down"]:
                stack.close()
                said[line] = ""
            else:
                raise RuntimeError(f"{line}: this cannot be done without Docker; say how in deploy/without_docker.py")
    return said


def commands(page: Path) -> list[str]:
    """The lines of a page's first block of shell commands, without comments."""
    found = re.search(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
    assert found, f"{page} has no block of commands"
    lines = found[1].replace("\\\n", " ").splitlines()
    return [line for each in lines if (line := re.sub(r"(^|\s+)#\s.*", "", each).strip())]


def _exec(plain: Plain, service: str, words: Sequence[str]) -> str:
    each = plain.services[service]
    ended = subprocess.run(
        plain.words(service, words), cwd=each.folder, env=each.environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{shlex.join(words)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout + ended.stderr


def main() -> None:
    """Start everything, and walk or wait."""
    parser = argparse.ArgumentParser(description="Start docker-compose.yml as plain processes.")
    parser.add_argument("--walk", type=Path, metavar="PAGE", help="type the commands of this page, and end")
    page = parser.parse_args().walk
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="vdsr-") as folder:
        if page:
            for line, said in walk(page, Path(folder), {}).items():
                print(f"$ {line}\n{said}")
            return
        with up(Plain(Path(folder), os.environ)) as plain:
            for name, why in plain.left_out.items():
                print(f"without {name}: {why}")
            for key, port in plain.ports.items():
                print(f"{key} at 127.0.0.1:{port}")
            try:
                signal.pause()
            except KeyboardInterrupt:
                print("stopped")


if __name__ == "__main__":
    main()
