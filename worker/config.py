"""Which settings stand in configuration files? TOML with the settings' names in lower case, and profiles.

    redis_url = "redis://redis.internal:6379/0"     # top level: always

    [upscale]                                       # what options of this command are where they are not given
    format = "webp"

    [profile.night]                                 # on top of that, with --profile night
    memory_budget = "8G"
    upscale.quality = 80

Read are $XDG_CONFIG_HOME/vdsr/config.toml (~/.config/vdsr/config.toml) and then ./vdsr.toml; a later word wins, and a
profile's wins over the top level of both. VDSR_CONFIG names one file instead of the two, or "none".
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from worker.errors import UsageError

PROFILE = "VDSR_PROFILE"
CONFIG = "VDSR_CONFIG"
NO_FILE = "none"
HERE = "vdsr.toml"
COMMANDS = ("upscale", "submit")
"""Commands whose options may have defaults in these files."""
SERVERS = {"redis_url", "redis_ca", "s3_endpoint_url", "model_keys"}
"""Where credentials go and who is trusted is not for HERE to say, which may have come with somebody's pictures."""


@dataclass(frozen=True)
class Given:
    """A setting as somebody wrote it down."""

    text: str
    origin: str
    """What to name in a message: "VDSR_TILE", or "tile in /home/me/vdsr.toml"."""
    folder: Path
    """Where a relative path starts."""


@dataclass(frozen=True)
class Default:
    """What an option is where it is not given."""

    value: Any
    origin: str


def files(environ: Mapping[str, str]) -> list[Path]:
    """The configuration files that count in this folder, whether there or not."""
    named = environ.get(CONFIG)
    if named == NO_FILE:
        return []
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise UsageError(f"{CONFIG} is {named!r}, which is no file; give a TOML file, or '{NO_FILE}'")
        return [path]
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [home / "vdsr" / "config.toml", Path(HERE).absolute()]


def read_files(paths: Iterable[Path], profile: str, names: Iterable[str], *, chosen: bool) -> dict[str, Given]:
    """What the files say of settings.

    Args:
        profile: its name, or "".
        names: of all settings.
        chosen: somebody has named the file, so that it may set SERVERS wherever it lies.

    Raises:
        UsageError: a file that is no TOML, an unknown setting or profile, or a value that is none.
    """
    names = list(names)
    tables = {path: _read(path) for path in paths if path.is_file()}
    profiles = {path: _profiles(table, path) for path, table in tables.items()}
    given: dict[str, Given] = {}
    for path, table in tables.items():
        always = {name: value for name, value in table.items() if name != "profile" and name not in COMMANDS}
        given |= _settings(always, str(path), path, names, chosen=chosen)
    for path, known in profiles.items():
        for name, table in known.items():  # of the others too: what is misspelt is told now
            own = {key: value for key, value in table.items() if key not in COMMANDS}
            found = _settings(own, f"{path} [profile.{name}]", path, names, chosen=chosen)
            given |= found if name == profile else {}
    if profile and all(profile not in known for known in profiles.values()):
        raise UsageError(_unknown_profile(profile, sorted({n for known in profiles.values() for n in known})))
    return given


def read_defaults(paths: Iterable[Path], profile: str, command: str, options: Iterable[str]) -> dict[str, Default]:
    """What the files say of a command's options.

    Args:
        options: that the command has, by their long names, with "_" for "-".

    Raises:
        UsageError: a file that is no TOML, or an option that the command does not have.
    """
    options = list(options)
    tables = {path: _read(path) for path in paths if path.is_file()}
    found: dict[str, Default] = {}
    for path, table in tables.items():
        found |= _defaults(table, command, options, str(path))
    for path, table in tables.items():
        found |= _defaults(_profiles(table, path).get(profile, {}), command, options, f"{path} [profile.{profile}]")
    return found


def _defaults(table: dict[str, Any], command: str, options: list[str], origin: str) -> dict[str, Default]:
    given = table.get(command, {})
    if not isinstance(given, dict):
        raise UsageError(f"{command} in {origin} is {given!r}; write [{command}] above the options of that command")
    found = {}
    for word, value in given.items():
        name = word.replace("-", "_")
        if name not in options:
            near = get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"'vdsr {command} --help' lists them"
            raise UsageError(f"[{command}] in {origin} has {word!r}, which is no option of it; {hint}")
        found[name] = Default(value, f"[{command}] in {origin}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} is no TOML: {exc}") from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}; mend that, or set {CONFIG}={NO_FILE}") from exc


def _profiles(table: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    profiles = table.get("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(each, dict) for each in profiles.values()):
        raise UsageError(f"profile in {path} is no table; write [profile.NAME] above its settings")
    return profiles


def _settings(table: dict[str, Any], origin: str, path: Path, names: list[str], *, chosen: bool) -> dict[str, Given]:
    given = {}
    for name, value in table.items():
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else "'vdsr config show' lists those that there are"
            raise UsageError(f"{origin} has {name!r}, which is no setting; {hint}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UsageError(f"{name} in {origin} is {value!r}; give a text or a whole number")
        if name in SERVERS and path == Path(HERE).absolute() and not chosen:
            raise UsageError(
                f"{origin} sets {name}, which the file of a folder may not; move it to ~/.config/vdsr/config.toml, "
                f"or choose this file by {CONFIG}"
            )
        if value != "":
            given[name] = Given(str(value), f"{name} in {origin}", path.parent)
    return given


def _unknown_profile(profile: str, known: list[str]) -> str:
    near = get_close_matches(profile, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
    return f"no configuration file has a [profile.{profile}]; {hint}"
