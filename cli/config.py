"""`vdsr config`: which settings hold here, and who says so."""

from __future__ import annotations

import click

from cli.options import as_json

EXAMPLE = "Example: VDSR_TILE=128 vdsr --profile night config show"


@click.group(name="config", epilog=EXAMPLE)
def command() -> None:
    """Look at settings: VDSR_* variables, else ./vdsr.toml, else ~/.config/vdsr/config.toml, else the defaults.

    A table [profile.NAME] of these files counts with --profile NAME or VDSR_PROFILE, over what stands outside of it.
    """


@command.command(name="show", epilog=EXAMPLE)
@as_json
def show(as_json: bool) -> int:
    """Print every setting with its value and where that comes from; passwords are masked."""
    from dataclasses import fields
    from pathlib import Path

    from cli.defaults import defaults_of
    from cli.output import left_aligned, print_json, printable, say
    from worker.config import COMMANDS
    from worker.settings import Settings, config_files, given_settings, load_settings, mask

    settings, given = load_settings(), given_settings()
    rows = []
    for field in fields(Settings):
        value = getattr(settings, field.name)
        origin = given[field.name].origin if field.name in given else "default"
        shown = mask(str(value)) if isinstance(value, str) else str(value) if isinstance(value, Path) else value
        rows.append((field.name, None if value is None else shown, origin))
    for name in COMMANDS:
        for option, default in defaults_of(name).items():
            rows.append((f"{name}.{option.rstrip('_')}", default.value, default.origin))
    if as_json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
        return 0
    for path in config_files():
        say(f"{printable(str(path))}: {'read' if path.is_file() else 'not there'}")
    table = [(name, "-" if value in (None, "") else str(value), origin) for name, value, origin in rows]
    click.echo(left_aligned([("setting", "value", "from"), *table]))
    return 0
