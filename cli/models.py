"""`vdsr models`: the registry of published weights, and checkpoints in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.completing import versions
from cli.options import as_json

if TYPE_CHECKING:
    from worker.registry import Alias, Registry, Version
    from worker.settings import Settings

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(name="models", epilog="Example: vdsr models list")
def command() -> None:
    """Publish weights, decide which are in production, and look at checkpoints.

    Published versions never change; the alias "production" says which one new jobs use. They lie in VDSR_REGISTRY.
    """


@command.command(name="list", epilog="Example: vdsr models list")
@as_json
def list_(as_json: bool) -> int:
    """List the published versions, and which of them is in production."""
    from cli.output import aligned, print_json, printable, say
    from vdsr import checkpoint
    from worker.registry import CANDIDATE, PRODUCTION, Registry
    from worker.settings import load_settings

    settings = load_settings()
    registry = Registry(settings)
    versions, damaged = registry.versions()
    aliases = {name: registry.alias(name) for name in (PRODUCTION, CANDIDATE)}
    refusals = _refusals(settings)
    shipped = checkpoint.identify()
    if as_json:
        print_json(
            {
                "registry": registry.uri,
                "versions": [_facts(version) for version in versions],
                "aliases": {name: alias and _alias_facts(alias) for name, alias in aliases.items()},
                "shipped": {"version": shipped.version, "sha256": shipped.sha256},
                "damaged": damaged,
                "refused": refusals,
            }
        )
        return 0
    table: list[tuple[str, ...]] = [("version", "SHA-256", "published", "gain over bicubic", "alias")]
    for version in versions:
        names = [name for name, alias in aliases.items() if alias and alias.version == version.name]
        table.append((printable(version.name), version.sha256[:12], version.created, _gains(version), ", ".join(names)))
    if all(version.sha256 != shipped.sha256 for version in versions):
        in_use = "" if aliases[PRODUCTION] else "in use, as nothing is in production"
        table.append((printable(shipped.version), shipped.sha256[:12], "ships with vdsr", "-", in_use))
    click.echo(aligned(table))
    say(f"registry: {printable(registry.uri)}")
    for reason in damaged.values():
        say(printable(reason))
    for name, reason in refusals.items():
        say(f"refused: {printable(name)} by {printable(reason)}")
    return 0


@command.command(epilog="Example: vdsr models show production")
@click.argument("name", required=False, shell_complete=versions)
@as_json
def show(name: str | None, as_json: bool) -> int:
    """Show the card of a version, an alias, or a file; without NAME, of the weights in use."""
    from cli.output import print_json, printable
    from vdsr import checkpoint
    from worker.registry import PRODUCTION, SHIPPED, Registry
    from worker.settings import load_settings

    settings = load_settings()
    registry = Registry(settings)
    if name is None and not settings.weights and registry.alias(PRODUCTION):
        name = PRODUCTION
    path = checkpoint.SHIPPED if name == SHIPPED else Path(name) if name else settings.weights or checkpoint.SHIPPED
    if path.is_file():
        facts: dict[str, Any] = {
            "path": str(path),
            "sha256": checkpoint.identify(path).sha256,
            **checkpoint.read_card(path),
        }
    else:
        facts = _facts(registry.version(name or PRODUCTION))
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(f"{key}: {printable(str(value))}" for key, value in facts.items()))
    return 0


@command.command(epilog="Example: vdsr models publish vdsr.safetensors --version 2026.12")
@click.argument("path", type=FILE)
@click.option("--version", "version_", help="Name of these weights  [default: the one in their header]")
@click.option("--promote", "promoting", is_flag=True, help="Put them into production at once.")
@click.option("--sign-key", type=FILE, help="Sign them by this private key  [default: VDSR_MODEL_SIGN_KEY]")
def publish(path: Path, version_: str | None, promoting: bool, sign_key: Path | None) -> int:
    """Add the checkpoint in PATH to the registry, as candidate."""
    from dataclasses import replace

    from cli.output import say
    from vdsr import checkpoint
    from worker.registry import CANDIDATE, PRODUCTION, Registry
    from worker.settings import load_settings
    from worker.training.publish import publish as add

    settings = load_settings()
    settings = replace(settings, model_sign_key=sign_key or settings.model_sign_key)
    registry = Registry(settings)
    identity = checkpoint.identify(path)
    name = version_ or identity.version
    version = add(registry, path.read_bytes(), name=name, metrics={})
    say(f"{registry.uri}: version {version.name}, SHA-256 {version.sha256}")
    alias = PRODUCTION if promoting else CANDIDATE
    _point(settings, registry, version, alias)
    return 0


@command.command(epilog="Example: vdsr models promote 2026.12")
@click.argument("name", shell_complete=versions)
def promote(name: str) -> int:
    """Put a version into production, or "shipped": new jobs use it, running workers take it up within seconds."""
    from vdsr import checkpoint, smoke
    from vdsr.upscale import Upscaler
    from worker.registry import PRODUCTION, SHIPPED, Registry
    from worker.settings import load_settings
    from worker.training.publish import publish as add

    settings = load_settings()
    registry = Registry(settings)
    if name == SHIPPED:
        data = checkpoint.SHIPPED.read_bytes()
        version = add(registry, data, name=checkpoint.identify().version, metrics={})
    else:
        version = registry.version(name)
    # What is damaged is to be told here, and not by the workers.
    smoke.check(Upscaler(registry.weights(version), device="cpu", precision="fp32"), version.smoke)
    _point(settings, registry, version, PRODUCTION)
    return 0


@command.command(epilog="Example: vdsr models rollback")
def rollback() -> int:
    """Put the version before back into production."""
    from worker.registry import Registry
    from worker.settings import load_settings

    settings = load_settings()
    _told(settings, Registry(settings).rollback())
    return 0


@command.command(epilog="Example: vdsr models verify")
@click.argument("name", required=False, shell_complete=versions)
@as_json
def verify(name: str | None, as_json: bool) -> int:
    """Load a version, or all; compare checksums, what they make of a known tile and, with VDSR_MODEL_KEYS, signatures.

    The exit code is 3 if any is bad.
    """
    from cli.output import print_json, printable
    from vdsr import smoke
    from vdsr.errors import CheckpointError
    from vdsr.upscale import Upscaler
    from worker.errors import NothingMatched
    from worker.registry import Registry
    from worker.settings import load_settings

    settings = load_settings()
    registry = Registry(settings)
    names = [registry.version(name).name] if name else registry.names()
    if not names:
        raise NothingMatched(f"{registry.uri} has no versions; see 'vdsr models publish --help'")
    found: dict[str, str | None] = {}
    for each in names:
        signer: str | None = None
        try:
            version = registry.version(each)
            smoke.check(Upscaler(registry.weights(version), device=settings.device), version.smoke)
            found[each] = None
            signer = registry.signer(version)
        except CheckpointError as exc:
            found[each] = str(exc)
        if not as_json:
            good = "good" if signer is None else f"good, signed by {signer}"
            click.echo(f"{printable(each)}: {found[each] or good}")
    if as_json:
        print_json(found)
    return 3 if any(found.values()) else 0


@command.command(epilog="Example: vdsr models keygen release.key")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
def keygen(path: Path) -> int:
    """Make an Ed25519 key to sign models by: PATH, to be kept secret, and PATH.pub for VDSR_MODEL_KEYS of workers."""
    from cli.output import say
    from worker.signing import make_key

    say(f"key {make_key(path)}: keep {path} where no worker is; give workers VDSR_MODEL_KEYS={path}.pub")
    return 0


@command.command(epilog="Example: vdsr models sign 2026.12 --sign-key release.key")
@click.argument("name", shell_complete=versions)
@click.option("--sign-key", type=FILE, help="The private key  [default: VDSR_MODEL_SIGN_KEY]")
def sign(name: str, sign_key: Path | None) -> int:
    """Vouch for a version of the registry, such as one that a training run has published."""
    from cli.output import say
    from worker.errors import UsageError
    from worker.registry import Registry
    from worker.settings import load_settings

    settings = load_settings()
    registry = Registry(settings)
    key_file = sign_key or settings.model_sign_key
    if key_file is None:
        raise UsageError("no key to sign by; give --sign-key FILE, or set VDSR_MODEL_SIGN_KEY")
    version = registry.version(name)
    say(f"{version.name} ({version.sha256[:12]}) is signed by {registry.sign(version, key_file)}")
    return 0


@command.command(name="import", epilog="Example: vdsr models import VDSR.pth -o vdsr.safetensors --version theirs")
@click.argument("path", type=FILE)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--version", "version_", required=True, help="Name of these weights, shown wherever they are used.")
def import_(path: Path, output: Path, version_: str) -> int:
    """Convert somebody's state dict (.pth) of the paper's network to safetensors, without running its code."""
    from cli.output import say
    from vdsr import checkpoint

    model = checkpoint.import_state_dict(path)
    identity = checkpoint.save(model, output, version=version_, notes={"imported_from": path.name})
    say(f"{output}: version {identity.version}, SHA-256 {identity.sha256}")
    say(f"look at 'vdsr eval DIR --weights {output}'; 'vdsr models publish {output}' lets jobs use it")
    return 0


def _point(settings: Settings, registry: Registry, version: Version, alias: str) -> None:
    from cli.output import say
    from worker.registry import PRODUCTION

    if alias == PRODUCTION:
        registry.signer(version)  # workers would refuse it
    over = registry.alias(alias)
    if over is not None and over.sha256 == version.sha256:
        say(f"{version.name} is {alias} already")
        return
    moved = registry.promote(version, over=over, alias=alias)
    if alias == PRODUCTION:
        _told(settings, moved)
    else:
        say(f"{version.name} is {alias}; 'vdsr models promote {version.name}' puts it into production")


def _told(settings: Settings, alias: Alias) -> None:
    from cli.output import say
    from worker.errors import TransientError
    from worker.fleet import Fleet

    say(f"{alias.version} ({alias.sha256[:12]}) is in production")
    try:
        Fleet(settings.redis_url).announce(alias.serial, alias.version)
    except TransientError as exc:
        say(f"workers could not be told, and learn it within a minute of Redis' return: {exc}")


def _refusals(settings: Settings) -> dict[str, str]:
    from worker.errors import TransientError
    from worker.fleet import Fleet

    try:
        return Fleet(settings.redis_url).refusals()
    except TransientError:  # no Redis, no workers
        return {}


def _facts(version: Version) -> dict[str, Any]:
    return {
        "version": version.name,
        "sha256": version.sha256,
        "size_bytes": version.size_bytes,
        "created": version.created,
        "metrics": version.metrics,
        "card": version.card,
    }


def _alias_facts(alias: Alias) -> dict[str, Any]:
    return {
        "version": alias.version,
        "sha256": alias.sha256,
        "changed": alias.changed,
        "by": alias.by,
        "history": list(alias.history),
    }


def _gains(version: Version) -> str:
    figures = version.metrics.get("psnr_y", {})
    return ", ".join(f"x{scale} {p['vdsr'] - p['bicubic']:+.2f}" for scale, p in figures.items()) or "-"
