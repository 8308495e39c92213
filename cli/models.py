"""`vdsr models`: look at checkpoints, and import others' safely."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import as_json

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(name="models")
def command() -> None:
    """Look at checkpoints, and import others' safely."""


@command.command()
@click.argument("path", type=FILE, required=False)
@as_json
def show(path: Path | None, as_json: bool) -> int:
    """Show the card of a checkpoint: PATH, or the one in use."""
    from cli.output import print_json
    from vdsr import checkpoint
    from worker.settings import load_settings

    used = path or load_settings().weights or checkpoint.SHIPPED
    identity, card = checkpoint.identify(used), checkpoint.read_card(used)
    facts = {"path": str(used), "sha256": identity.sha256, **card}
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))
    return 0


@command.command(name="import")
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
    say(f"use it with VDSR_WEIGHTS={output}, and look at 'vdsr eval DIR --weights {output}' first")
    return 0
