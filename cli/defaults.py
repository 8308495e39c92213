"""Which options of a command have defaults in configuration files?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from worker.config import Default

NEVER = {"help", "dry_run", "as_json", "events", "wait", "files_from", "null", "reference"}
"""Options that belong to one call. A reference is read from, and a folder's file may come with somebody's pictures."""


def defaults_of(command: str) -> dict[str, Default]:
    """What the files say, by the names of click's parameters.

    Raises:
        UsageError: worker.config says of what.
    """
    from worker.settings import command_defaults

    options = {
        param.opts[-1].removeprefix("--").replace("-", "_"): param.name or ""
        for param in import_module(f"cli.{command}").command.params
        if isinstance(param, click.Option) and param.name not in NEVER
    }
    return {options[name]: default for name, default in command_defaults(command, options).items()}
