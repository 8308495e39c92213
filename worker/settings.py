"""Which settings does this process run with? Read once, checked, and handed down.

They come from VDSR_* variables, else from configuration files (worker.config), else from the defaults here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from vdsr.device import ENGINES, PRECISIONS
from worker.config import CONFIG, NO_FILE, PROFILE, Default, Given, files, read_defaults, read_files
from worker.errors import UsageError

LOG_FORMATS = ("text", "json")
Bytes = int
"""May be given as 512M or 4G."""
LEAST_MEMORY_BUDGET = 1 << 30


@dataclass(frozen=True)
class Settings:
    """Every setting of a worker or client; the variable is VDSR_ and the name in capitals."""

    state_dir: Path
    """Where `vdsr dev` keeps its Redis, whose socket here is found by every other command, and by default models and
    runs; unset: `~/.local/state/vdsr`."""
    redis_url: str = field(repr=False)  # it may hold a password
    """`redis://`, `rediss://` or `unix://` of the queue and ledger; unset: the Redis of `vdsr dev`, else
    `redis://localhost:6379/0`."""
    redis_ca: Path | None = None
    """The certificate (PEM) of the authority behind a `rediss://` server; unset: those that the system trusts."""
    s3_endpoint_url: str | None = None
    """URL of an S3 server that is not Amazon's; unset: Amazon's."""
    device: str = "auto"
    """`auto` (CUDA, then CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: str = "auto"
    """`auto` (bf16 on GPUs that have it and on CPUs with AMX, 16-bit integers on other CPUs), `fp32` or `bf16`."""
    engine: str = "auto"
    """`auto`, `native` (our compiled code, CPUs only) or `torch`."""
    tile: int = 0
    """Pixels a side that one pass contributes where torch computes; smaller needs less memory. 0: what suits the
    device, 256 on a CPU, 1,048 on a GPU with the memory."""
    threads: int = 0
    """Threads of a worker's computation; 0 takes every core."""
    weights: Path | None = None
    """A checkpoint to use instead of the registry's and the one that ships, the same for clients and workers."""
    registry: str = ""
    """Where published models lie, a folder or `s3://bucket/prefix`, the same for all; unset: `models` in the state
    folder."""
    runs: str = ""
    """Where training runs keep their files; in S3 if several nodes train; unset: `runs` in the state folder."""
    model_keys: Path | None = None
    """A file of public keys (PEM): only published models that one of them has signed are used; unset: any."""
    model_sign_key: Path | None = None
    """The private key (PEM) that signs what this process publishes; unset: nothing is signed."""
    cache_dir: Path = Path("~/.cache/vdsr")
    """What may be deleted: fetched training images, and arrays made from them."""
    max_pixels: int = 100_000_000
    """Pixels of the largest input picture."""
    max_output_pixels: int = 400_000_000
    """Pixels of the largest picture that is made."""
    max_file_bytes: Bytes = 0
    """Largest file that is read, such as `512M`, and what files that are read ahead take together; 0: a quarter of the
    memory budget."""
    memory_budget: Bytes = 0
    """What a worker's process may take for all that it has in hand, such as `4G`; 0: half of the machine's memory. Set
    it where several share a machine."""
    chunk_images: int = 100
    """Most images in a chunk, which is what a worker takes at a time."""
    chunk_megapixels: int = 0
    """Most output megapixels in a chunk, estimated from file sizes; 0 suits the device: 8 on a CPU, 4,096 on a card."""
    lease_s: int = 30
    """How long a silent worker keeps its chunk."""
    health_dir: Path | None = None
    """A folder where a worker leaves word for `vdsr health`, each its own; unset: it leaves none."""
    stuck_s: int = 1800
    """How long a worker may be at one tile, file or step until `vdsr health` no longer calls it alive."""
    grace_s: int = 20
    """How long a worker that is asked to stop goes on with what it has in hand, if it has any."""
    metrics_port: int = 0
    """Where a worker serves its metrics for Prometheus, such as 9540, each worker on a host at its own; 0: nowhere."""
    metrics_host: str = "0.0.0.0"  # noqa: S104  # Prometheus mostly asks from another host, and it is off by default
    """The address that `VDSR_METRICS_PORT` belongs to; `127.0.0.1` serves this host alone."""
    log_format: str = "text"
    """`text`, or `json`: a worker's log as JSON lines, with the ids of job, chunk, image and model in fields."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "registry", self.registry or str(self.state_dir / "models"))
        object.__setattr__(self, "runs", self.runs or str(self.state_dir / "runs"))
        limits = {"tile": 0, "threads": 0, "max_pixels": 1, "max_output_pixels": 1}
        limits |= {
            "chunk_images": 1,
            "chunk_megapixels": 0,
            "lease_s": 3,
            "grace_s": 0,
            "metrics_port": 0,
            "stuck_s": 1,
        }
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UsageError(f"VDSR_{name.upper()} is {getattr(self, name)}; it must be at least {least}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"VDSR_DEVICE is {self.device!r}; it must be auto, cpu, cuda or cuda:N")
        for name, words in {"precision": PRECISIONS, "engine": ENGINES, "log_format": LOG_FORMATS}.items():
            if getattr(self, name) not in words:
                value = getattr(self, name)
                raise UsageError(f"VDSR_{name.upper()} is {value!r}; it must be one of {', '.join(words)}")
        if self.memory_budget and self.memory_budget < LEAST_MEMORY_BUDGET:
            raise UsageError(f"VDSR_MEMORY_BUDGET is {self.memory_budget:,} bytes; it must be at least 1G")
        if urlsplit(self.redis_url).scheme not in ("redis", "rediss", "unix"):
            raise UsageError(
                f"VDSR_REDIS_URL is {mask(self.redis_url)!r}; it must start with redis://, rediss:// or unix://"
            )

        if {"password", "username"} & set(parse_qs(urlsplit(self.redis_url).query)):
            raise UsageError("VDSR_REDIS_URL has a password behind '?'; write it as rediss://user:password@host:port/0")
        if self.redis_ca:
            object.__setattr__(self, "redis_url", _trusting(self.redis_url, self.redis_ca))

    @property
    def broker_tls(self) -> dict[str, Any] | None:
        """What Celery is to check about a server with TLS; without, it would take any certificate."""
        parts = urlsplit(self.redis_url)
        if parts.scheme != "rediss":
            return None
        given = {name: values[0] for name, values in parse_qs(parts.query).items() if name.startswith("ssl_")}
        return {"ssl_cert_reqs": "required", **given}

    @property
    def broker_url(self) -> str:
        """The same Redis in Celery's words."""
        if self.redis_url.startswith("unix://"):
            return "redis+socket://" + self.redis_url.removeprefix("unix://") + "?virtual_host=0"
        return self.redis_url


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process, or of an environment alone.

    Args:
        environ: counts alone, without configuration files; None: this process' own, and files.

    Raises:
        UsageError: a value that does not parse, or a VDSR_ variable that is none of ours.
    """
    if environ is not None:
        return _settings(environ, _variables(environ))
    return _settings(os.environ, given_settings())


def given_settings() -> dict[str, Given]:
    """What this process is given by its environment, which wins, and by configuration files."""
    names = [field.name for field in fields(Settings)]
    variables = _variables(os.environ)
    chosen = bool(os.environ.get(CONFIG))
    return {**read_files(files(os.environ), os.environ.get(PROFILE, ""), names, chosen=chosen), **variables}


def command_defaults(command: str, options: Iterable[str]) -> dict[str, Default]:
    """What the configuration files say of a command's options; see worker.config."""
    return read_defaults(files(os.environ), os.environ.get(PROFILE, ""), command, options)


def config_files() -> list[Path]:
    """The configuration files that count here, whether there or not."""
    return files(os.environ)


def use_profile(name: str) -> None:
    """Have `load_settings` use a profile of the configuration files."""
    os.environ[PROFILE] = name


def to_environment(settings: Settings) -> dict[str, str]:
    """Variables that give a process these settings, wherever it runs: all that are not the default, and all paths."""
    variables = {CONFIG: NO_FILE, PROFILE: ""}
    for each in fields(Settings):
        value = getattr(settings, each.name)
        if value != each.default and value is not None:
            variables[f"VDSR_{each.name.upper()}"] = str(value)
    return variables


def _variables(environ: Mapping[str, str]) -> dict[str, Given]:
    """The settings among an environment's variables."""
    names = [field.name for field in fields(Settings)]
    given = {}
    for variable, text in environ.items():
        if not variable.startswith("VDSR_") or text == "":
            continue
        name = variable.removeprefix("VDSR_").lower()
        if name in names:
            given[name] = Given(text, variable, Path.cwd())
        elif near := get_close_matches(name, names, n=1, cutoff=0.8):  # options of commands are VDSR_ variables too
            raise UsageError(f"{variable} is no setting; did you mean VDSR_{near[0].upper()}?")
    return given


def _settings(environ: Mapping[str, str], given: Mapping[str, Given]) -> Settings:
    kinds = {field.name: str(field.type) for field in fields(Settings)}
    values: dict[str, Any] = {name: _parsed(each, kinds[name]) for name, each in given.items()}
    state_home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    cache_home = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    values.setdefault("state_dir", (Path(state_home) / "vdsr").expanduser().absolute())
    values.setdefault("redis_url", _default_redis(values["state_dir"]))
    values.setdefault("cache_dir", Path(cache_home) / "vdsr")
    return Settings(**values)


def mask(url: str) -> str:
    """The URL without its password, for messages and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def _trusting(url: str, authority: Path) -> str:
    """The URL with the authority in it, in the words that redis-py and Celery share."""
    parts = urlsplit(url)
    if parts.scheme == "unix":  # that of `vdsr upscale` or `vdsr dev`, beside a setting for the fleet's
        return url
    if parts.scheme != "rediss":
        raise UsageError(f"VDSR_REDIS_CA is set, and {mask(url)!r} has no TLS; write rediss:// in VDSR_REDIS_URL")
    if not authority.is_file():
        raise UsageError(f"VDSR_REDIS_CA is {str(authority)!r}, which is no file; give a certificate in PEM")
    query = {**parse_qs(parts.query), "ssl_ca_certs": [str(authority)]}
    return urlunsplit(parts._replace(query=urlencode(query, doseq=True)))


def _default_redis(state_dir: Path) -> str:
    socket = state_dir / "redis.sock"
    return f"unix://{socket}" if socket.exists() else "redis://localhost:6379/0"


def _parsed(given: Given, kind: str) -> Any:
    text = given.text
    if kind == "Bytes":
        found = re.fullmatch(r"([\d_]+)\s*([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
        if not found:
            raise UsageError(f"{given.origin} is {text!r}; give a size such as 512M or 4G")
        return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]
    if kind == "int":
        try:
            return int(text.replace("_", ""))
        except ValueError as exc:
            raise UsageError(f"{given.origin} is {text!r}; give a whole number") from exc
    # Absolute: workers run in another folder.
    return (given.folder / Path(text).expanduser()).absolute() if kind.startswith("Path") else text
