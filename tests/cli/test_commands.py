"""Every command of the README and the tutorial, as it stands there, in a folder like that of a newcomer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
import servers
from helpers import make_photos, published, wait_until
from PIL import Image

from cli.main import root
from worker.client import Client
from worker.jobs import JOB_ID
from worker.registry import PRODUCTION, Registry
from worker.settings import load_settings

ROOT = Path(__file__).parents[2]
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"

STAY = ("vdsr dev", "celery -A worker worker -Q upscale")
"""Commands that run until they are stopped: each stays while the ones below it are run."""

NOT_RUN = {
    "make test": "it is what runs this test",
    "export VDSR_REDIS_URL=redis://redis.internal:6379/0": "another machine's; the commands below it find 'vdsr dev'",
    "vdsr train --local --data photos": "hours; tests/cli/test_train_cli.py trains for some steps",
    "vdsr train --data s3://bucket/hr --publish": "hours; tests/worker/test_training_service.py does so from S3",
    "weed mini -dir=$(mktemp -d) -ip=127.0.0.1 -bucket=images -s3.port=8333": "tests/servers.py does, on free ports",
}

ENDS_WITH = {"vdsr resume photos-x2": 5}
"""Exit codes other than 0: Redis has forgotten nothing here, and the command says so."""


def commands(page: Path) -> list[str]:
    """What a reader is to type, line by line, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    plain = [re.sub(r"\s+#\s.*", "", line).strip() for line in lines]
    return [command for line in plain if line for command in re.split(r";\s+(?=vdsr )", line)]


@dataclass
class Terminal:
    """A shell in a folder, whose variables outlive each command."""

    folder: Path
    environment: dict[str, str]
    stand_ins: dict[str, str] = field(default_factory=dict)
    """What a page names, and what it is called here."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """What it printed; it has to end well, or as ENDS_WITH says."""
        after = f"\ncode=$?\nexport -p > '{self.folder}/.variables'\nexit $code"
        script = f"{self._before()}set -a\n{self._here(command)}{after}"
        ended = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == ENDS_WITH.get(command, 0), f"{command}\n{ended.stdout}{ended.stderr}"
        if command.startswith("vdsr submit"):  # the page calls it JOB from here on
            job = next(line for line in ended.stdout.splitlines() if JOB_ID.fullmatch(line))
            with (self.folder / ".variables").open("a") as variables:
                variables.write(f"\nexport JOB={job}\n")
        return ended.stdout + ended.stderr

    def keep(self, command: str) -> None:
        """Start what stays; where it runs already, it is stopped before, as Ctrl-C does."""
        self.stop(command)
        log = self.folder / f"{command.replace(' ', '-')}.log"
        workers = len(self._workers()) if self.running else 0
        with log.open("wb") as output:
            self.running[command] = subprocess.Popen(
                ["bash", "-c", f"{self._before()}exec {command}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        socket = Path(self.environment["VDSR_STATE_DIR"]) / "redis.sock"
        wait_until(lambda: socket.exists() and len(self._workers()) == workers + 1, 120)

    def stop(self, command: str) -> None:
        """End what stays; it must have stayed until now."""
        process = self.running.pop(command, None)
        if process is not None:
            assert process.poll() is None, f"{command} ended by itself"
            process.terminate()
            process.wait(60)

    def stop_all(self) -> None:
        """What was started last ends first."""
        for command in reversed(list(self.running)):
            self.stop(command)

    def _workers(self) -> list[object]:
        return list(Client.connect(load_settings(self.environment)).workers())

    def _before(self) -> str:
        variables = self.folder / ".variables"
        return f". '{variables}'\n" if variables.exists() else ""

    def _here(self, command: str) -> str:
        for name, here in self.stand_ins.items():
            command = command.replace(name, here)
        return re.sub(r"(?<![$\w])JOB(?![\w=])", "$JOB", command)


@contextmanager
def newcomer(folder: Path) -> Iterator[Terminal]:
    """A folder with the Makefile, the sample photographs (smaller, to be done sooner) and an installed .venv."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
        os.utime(folder / name, (0, 0))  # older than .ready: installed is what runs this test
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.prefix) / "bin")
    (folder / ".venv" / ".ready").touch()
    (folder / "examples" / "photos").mkdir(parents=True)
    for path in (ROOT / "examples" / "photos").glob("*.[jpw]*"):
        photo = Image.open(path)
        photo.thumbnail((48, 48))
        photo.save(folder / "examples" / "photos" / path.name)
    with tempfile.TemporaryDirectory(prefix="vdsr-") as state, ExitStack() as ending:  # short, for a socket's path
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("VDSR_", "AWS_"))}
        own = {"VDSR_STATE_DIR": state, "VDSR_CACHE_DIR": f"{state}/cache", "VDSR_THREADS": "1", "VDSR_LEASE_S": "5"}
        aws = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        terminal = Terminal(folder, {**clean, **own, **aws, "AWS_EC2_METADATA_DISABLED": "true"})
        ending.callback(terminal.stop_all)
        yield terminal


@contextmanager
def own_bucket(server: servers.S3Server, name: str, photos: Path | None = None) -> Iterator[dict[str, str]]:
    """A bucket of the name that a page gives it, with pictures below two prefixes; the variables that lead there."""
    import boto3

    keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
    client = boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=name)
    for path in sorted(photos.glob("*.*")) if photos else ():
        for prefix in ("scans", "prefix"):
            client.put_object(Bucket=name, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    keys = {key.upper(): value for key, value in keys.items()}
    yield {**keys, "VDSR_S3_ENDPOINT_URL": server.endpoint_url, "AWS_DEFAULT_REGION": "us-east-1"}
    client.delete_bucket(Bucket=name)


def follow(terminal: Terminal, page: Path) -> dict[str, str]:
    """Type all that a page says; what each command printed."""
    said = {}
    for command in commands(page):
        if command in STAY:
            terminal.keep(command)
        elif command not in NOT_RUN:
            said[command] = terminal.run(command)
    return said


def _follow_readme(folder: Path, server: servers.S3Server) -> dict[str, str]:
    with newcomer(folder) as terminal:
        photos = make_photos(folder / "photos", 3)
        shutil.copy(photos / "0000.jpg", folder / "cat.jpg")
        registry = Registry(load_settings(terminal.environment))
        registry.promote(published(registry, "one", 1), over=None)
        registry.promote(published(registry, "two", 2), over=registry.alias(PRODUCTION))
        with own_bucket(server, "bucket", photos) as variables:
            terminal.environment.update(variables)
            said = follow(terminal, README)
            terminal.stop_all()
    return said


def _follow_tutorial(folder: Path, server: servers.S3Server) -> dict[str, str]:
    with newcomer(folder) as terminal, own_bucket(server, "images") as variables:
        terminal.stand_ins = {
            "http://localhost:8333": server.endpoint_url,
            "AWS_ACCESS_KEY_ID=me": f"AWS_ACCESS_KEY_ID={variables['AWS_ACCESS_KEY_ID']}",
            "AWS_SECRET_ACCESS_KEY=not-a-secret": f"AWS_SECRET_ACCESS_KEY={variables['AWS_SECRET_ACCESS_KEY']}",
        }
        said = follow(terminal, TUTORIAL)
        terminal.stop_all()
    return said


@dataclass(frozen=True)
class Followed:
    """A page that is being typed, and where."""

    folder: Path
    said: Future[dict[str, str]]


@pytest.fixture(scope="module")
def pages(s3_server: servers.S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Followed]]:
    """README and tutorial, side by side: much of it is waiting for processes to start."""
    with ThreadPoolExecutor(2) as readers:
        folders = [tmp_path_factory.mktemp("readme"), tmp_path_factory.mktemp("tutorial")]
        ways = [_follow_readme, _follow_tutorial]
        yield [Followed(at, readers.submit(way, at, s3_server)) for at, way in zip(folders, ways, strict=True)]


@pytest.mark.redis
@pytest.mark.s3
def test_every_command_of_the_readme_works(pages: list[Followed]) -> None:
    folder, said = pages[0].folder, pages[0].said.result()

    outputs = {path.name for path in (folder / "demo-output").glob("[!.]*")}
    assert outputs == {path.name for path in (folder / "examples" / "photos").iterdir()}
    assert len(outputs) == 7
    assert Image.open(folder / "cat-x3.png").size == (72, 48)
    assert "one (" in said["vdsr models rollback"]
    assert "is in production" in said["vdsr models rollback"]
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.redis
@pytest.mark.s3
def test_every_command_of_the_tutorial_works(pages: list[Followed]) -> None:
    folder, said = pages[1].folder, pages[1].said.result()

    assert "exit code 3\n" in said['vdsr wait $JOB || echo "exit code $?"']
    assert re.fullmatch(r"half\.jpg\ttruncated\t.*\n", said["vdsr status $JOB --failed"])
    assert "1 images of job" in said["vdsr retry $JOB --wait"]
    assert (folder / "bucket.html").stat().st_size > 10_000


def test_the_readmes_lines_of_python_work_as_they_stand(tmp_path: Path) -> None:
    make_photos(tmp_path, 1)
    (tmp_path / "0000.jpg").rename(tmp_path / "cat.jpg")
    code = re.search(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert code is not None

    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, check=True, timeout=120)

    assert Image.open(tmp_path / "cat-large.png").size == (48, 32)


def test_what_is_not_run_still_stands_on_a_page() -> None:
    typed = {*commands(README), *commands(TUTORIAL)}

    assert [command for command in (*NOT_RUN, *STAY, *ENDS_WITH) if command not in typed] == []
    named = [found for reason in NOT_RUN.values() for found in re.findall(r"tests/\S+\.py", reason)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_command_and_option_on_any_page_is_one_that_there_is() -> None:
    pages = [README, *(ROOT / "docs").rglob("*.md")]
    typed = [command for page in pages for command in commands(page)]
    ours = [words for command in typed for words in [shlex.split(_inner(command))] if words[:1] == ["vdsr"]]

    assert len(ours) > 40
    assert [message for words in ours if (message := _unknown(words))] == []


def _inner(command: str) -> str:
    """`vdsr ...` of a line, also where its output is kept or torchrun starts it."""
    found = re.search(r"(?:^|\$\(|-- )(vdsr [^|)]*)", command)
    return found[1] if found else ""


def _unknown(words: list[str]) -> str | None:
    command: click.Command | None = root
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
    if command is None:
        return f"{shlex.join(words)}: no such command"
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"{shlex.join(words)}: {unknown}" if unknown else None
