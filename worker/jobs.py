"""What is a job? Records that the client, the ledger and the workers pass to each other, all plain JSON underneath.

A job has chunks; a chunk has images; an image has one outcome.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from worker.errors import NewerFormat, UsageError
from worker.formats import METADATA

SCHEMA = 4
"""Version of job.json, manifests, results and ledger records. What is newer than it knows, a worker leaves to newer
ones; CONTRIBUTING.md says when to raise it."""


MOST_SCALE = 16
MOST_SIDE = 200_000
MOST_MEGAPIXELS = 100_000
OVERWRITE = ("stale", "never", "always")
ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no 0 o 1 i l
STRIDES = {"high": 1, "normal": 10, "low": 100}
"""What a chunk costs its job when turns are given (worker.scripts.TURN): each priority gets ten times the share of the
one below, and none gets nothing."""
JOB_ID = re.compile(rf"\d{{8}}-\d{{6}}-[{ALPHABET}]{{5}}")


class State(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    """No worker has taken any of it yet."""
    RUNNING = "running"
    """Being listed or worked on."""
    COMPLETED = "completed"
    """Every image was attempted; some may have failed."""
    FAILED = "failed"
    """The job itself could not go on; its `error` says why."""
    CANCELLED = "cancelled"
    """Stopped by a user; finished images stay."""

    @property
    def ended(self) -> bool:
        """Whether no more work will be done."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Options:
    """What the user asked for; fixed at submission."""

    scale: float = 2.0
    """Factor, unless `width` or `height` is given."""
    width: int | None = None
    """Pixels of the outputs; with `height` too, each output fits into both. See worker.sizing."""
    height: int | None = None
    max_megapixels: float | None = None
    """Most of an output: the factor is less where it would have more."""
    format: str = "same"
    """same, or one of worker.formats.FORMATS in lower case."""
    quality: int | None = None
    """1 to 100 for JPEG, WebP and AVIF; None takes 95, 90 and 80."""
    metadata: str = "keep"
    """What becomes of EXIF and XMP: "keep", "strip", or "copyright", which keeps who made it and whose it is."""
    overwrite: str = "stale"
    """What is done where an output is there already: "stale" skips the image if that was made from this very source
    with these settings and this model, "never" skips it in any case, "always" does it again."""
    recursive: bool = True
    include: tuple[str, ...] = ()
    """Shell patterns; a key must match one, if there are any."""
    exclude: tuple[str, ...] = ()
    """Shell patterns; a key must match none."""
    reference: str | None = None
    """URI of true pictures under the same keys, to score against."""
    reference_key: str | None = None
    """For a single file: the key of its true picture."""
    score: bool = True
    """Whether to compute PSNR at all."""
    max_failures: str = ""
    """How many images may fail before the job does: "20", or "5%" of all; empty: any number."""
    name_template: str = ""
    """Of the outputs' file names (worker.names); empty: the inputs' names."""
    priority: str = "normal"
    """Its share of the workers while other jobs wait: "high", "normal" or "low"."""
    self_ensemble: bool = False
    """Whether the network sees each picture in all eight orientations: better by up to 0.1 dB, eight times the work."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and 1 <= self.scale <= MOST_SCALE):
            raise UsageError(f"scale is {self.scale:g}; it must be from 1 to {MOST_SCALE}")
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels is not None and not 1 <= pixels <= MOST_SIDE:
                raise UsageError(f"{name} is {pixels}; it must be from 1 to {MOST_SIDE:,} pixels")
        if self.max_megapixels is not None and not 0 < self.max_megapixels <= MOST_MEGAPIXELS:
            raise UsageError(f"max-mp is {self.max_megapixels:g}; it must be over 0 and at most {MOST_MEGAPIXELS:,}")
        if self.overwrite not in OVERWRITE:
            raise UsageError(f"overwrite is {self.overwrite!r}; it must be one of {', '.join(OVERWRITE)}")
        if self.metadata not in METADATA:
            raise UsageError(f"metadata is {self.metadata!r}; it must be one of {', '.join(METADATA)}")
        if self.priority not in STRIDES:
            raise UsageError(f"priority is {self.priority!r}; it must be one of {', '.join(STRIDES)}")
        if self.max_failures and not re.fullmatch(r"\d+|\d+(\.\d+)?%", self.max_failures):
            raise UsageError(f"max-failures is {self.max_failures!r}; give a number of images, or a share such as 5%")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(f"quality is {self.quality}; it must be from 1 to 100")

    @property
    def sized(self) -> bool:
        """Whether a size is asked for, and not a factor."""
        return self.width is not None or self.height is not None

    @property
    def target(self) -> str:
        """What the outputs' size goes by, for people: "x2", "3,840 px wide", "x4 up to 50 MP"."""
        if self.width and self.height:
            size = f"within {self.width:,} x {self.height:,} px"
        elif self.sized:
            size = f"{self.width:,} px wide" if self.width else f"{self.height:,} px high"
        else:
            size = f"x{self.scale:g}"
        return f"{size} up to {self.max_megapixels:g} MP" if self.max_megapixels else size

    @property
    def label(self) -> str:
        """The same as a part of a file's name: "x2", "3840x2160", "w3840", "h2160"; the most is not in it."""
        if self.width and self.height:
            return f"{self.width}x{self.height}"
        return f"w{self.width}" if self.width else f"h{self.height}" if self.height else f"x{self.scale:g}"


ENOUGH = 1000
"""Images that must be listed before a share of them means something, if there are so many."""
SHAPELESS = {
    "max_failures",
    "name_template",
    "overwrite",
    "priority",
    "recursive",
    "include",
    "exclude",
    "reference",
    "reference_key",
    "score",
}
"""Options that say which images are done and what is told of them, and not how they look."""
FOUNDING = {"scale", "format", "quality", "metadata", "self_ensemble"}
"""Options that have always stood in `Job.made_of`. A later one stands there only where it is not the default: what was
made before there was such an option would else be made again after an upgrade."""


def too_many_failed(options: Options, failed: int, listed: int, *, complete: bool) -> bool:
    """Whether more images have failed than the user allows.

    Args:
        listed: images that are known.
        complete: whether those are all.
    """
    if not options.max_failures:
        return False
    if not options.max_failures.endswith("%"):
        return failed > int(options.max_failures)
    share = float(options.max_failures.removesuffix("%")) / 100
    return (complete or listed >= ENOUGH) and failed > share * listed


@dataclass(frozen=True)
class Model:
    """Which weights."""

    version: str
    sha256: str


@dataclass(frozen=True)
class Job:
    """One submission."""

    id: str
    source: str
    """URI of the folder or prefix that is read."""
    destination: str
    """URI of the folder or prefix that is written."""
    options: Options
    model: Model
    """Fixed at submission; of a job that follows, what it falls back on."""
    only: tuple[str, str] | None = None
    """For a single file: its key at the source and at the destination."""
    named: tuple[int, str] | None = None
    """How many files the user has named, and a digest of their names (worker.filelist); None: all that there are."""
    follow: bool = False
    """Whether each chunk uses what is in production when it starts. Results name the model of each image."""
    created: float = 0.0
    """Unix time in seconds."""
    schema: int = SCHEMA

    def made_of(self, key: str, version: str, sha256: str) -> str:
        """A digest of all that shapes an output: two that share it are the same picture.

        Args:
            version: of the source object.
            sha256: of the weights.
        """
        options = {
            each.name: value
            for each in fields(Options)
            if each.name not in SHAPELESS
            and ((value := getattr(self.options, each.name)) != each.default or each.name in FOUNDING)
        }
        parts = [f"{self.source.rstrip('/')}/{key}", version, options, sha256]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def is_made(self, image: Image, mark: str | None, sha256: str) -> bool:
        """Whether an image's output is there already, and need not be made again.

        Args:
            mark: of what lies there: what it is made of, and by which job; None if nothing does.
            sha256: of the weights.
        """
        made_of, _, job_id = (mark or "").partition(" ")
        if job_id == self.id:  # by a worker that died before it could record it
            return False
        if self.options.overwrite == "never":
            return mark is not None
        return bool(image.version) and made_of == self.made_of(image.key, image.version, sha256)

    @property
    def places(self) -> tuple[str, str]:
        """Source and destination as a user knows them: for a single file, the files themselves."""
        keys = self.only or ("", "")
        source, target = (
            f"{root.rstrip('/')}/{key}" if key else root
            for root, key in zip((self.source, self.destination), keys, strict=True)
        )
        return source, target

    @property
    def work(self) -> str:
        """A digest that two jobs share if they do the same: all but their id, time and priority."""
        same = {**dataclasses.asdict(self), "id": "", "created": 0}
        del same["options"]["priority"]
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The record as it lies in the ledger and in job.json."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`; what job.json says of the job's end is left out.

        Raises:
            NewerFormat: written by a newer version of this program. What of a job is not known cannot be left out.
        """
        raw = json.loads(text)
        raw.pop("ended", None)
        options = raw["options"]
        unknown = unknown_names(cls, raw) | unknown_names(Options, options)
        if raw["schema"] > SCHEMA or unknown:
            with_them = f"{raw['schema']} with {', '.join(sorted(unknown))}" if unknown else raw["schema"]
            raise NewerFormat(f"job {raw['id']}", with_them, SCHEMA)
        for name in ("include", "exclude"):
            options[name] = tuple(options[name])
        raw["options"] = Options(**options)
        raw["model"] = Model(**raw["model"])
        raw["named"] = tuple(raw["named"]) if raw.get("named") else None
        raw["only"] = tuple(raw["only"]) if raw["only"] else None
        return cls(**raw)


@dataclass(frozen=True)
class Image:
    """One image of a chunk, as its manifest part lists it."""

    key: str
    """At the source."""
    size_bytes: int
    version: str
    """Of the source object when it was listed."""
    output: str
    """Key at the destination."""
    problem: tuple[str, str] | None = None
    """A (code, message) known before any work: two inputs for one output, or a name that cannot be written."""
    again: str | None = None
    """In another attempt, the code of the failure before, which is taken back when this one is counted; "" if a stop
    left the image without an outcome."""


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a row of the results."""

    key: str
    output: str
    outcome: str
    """done, failed or skipped."""
    size_bytes: int
    code: str | None = None
    """Of a failure; see worker.errors and vdsr.errors."""
    message: str | None = None
    """For people: why it failed or was skipped."""
    psnr: dict[str, Any] | None = None
    """See worker.scores."""
    model: str | None = None
    """SHA-256 of the weights that made it."""
    width: int | None = None
    """Of the output, in pixels."""
    height: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent on it, by stage."""
    notes: tuple[str, ...] = ()
    """What the user should know of a finished image: "first of 12 frames"."""
    worker: str | None = None
    """Who attempted it."""
    finished: float | None = None
    """Unix time in seconds, by that worker's clock."""

    def to_json(self) -> str:
        """One line of the results."""
        return json.dumps(vars(self))  # asdict would copy all of it first, at many times the cost

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """The inverse of `to_json`."""
        raw = known_part(cls, json.loads(text))
        return cls(**{**raw, "notes": tuple(raw["notes"])})


def unknown_names(kind: type[Any], raw: Mapping[str, Any]) -> set[str]:
    """Names in a record that a dataclass of this version has not."""
    return set(raw) - {each.name for each in fields(kind)}


def known_part(kind: type[Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what a newer version has added to it, where that may be left out: it tells, and asks nothing."""
    return {name: value for name, value in raw.items() if name not in unknown_names(kind, raw)}


def new_job_id() -> str:
    """Sorts by time, and can be read out: "20261123-041502-x7qd2"."""
    tail = "".join(secrets.choice(ALPHABET) for _ in range(5))
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + tail
