"""How does a run go from its first step to its weights, however often it is killed on the way?

What lies in a run's folder, on disk or in S3:

    run.json            what decides the weights and what they were made with: recipe, data, code, machines
    data.json           every image with its SHA-256, and which of them validate
    log.jsonl           loss, learning rate and validation, one row every few steps
    state.pt            everything to go on from, at most a minute old
    tensorboard/        the same curves as TensorBoard events
    vdsr.safetensors    the weights, once the run is done
    report.html         the curves and sample pictures, to be opened in a browser
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

import vdsr
from vdsr import checkpoint
from vdsr.data import Dataset, Patches, batches
from vdsr.device import describe
from vdsr.errors import DataChanged, NonFinite, StateDamaged
from vdsr.training.events import Events
from vdsr.training.optimiser import learning_rate
from vdsr.training.recipe import as_scale
from vdsr.training.trainer import Trainer, validate

STATE, LOG, WEIGHTS, RUN, DATA = "state.pt", "log.jsonl", "vdsr.safetensors", "run.json", "data.json"
SAVE_S = 30.0
"""Between two saved states: with a validation on a slow machine between, a kill costs less than a minute."""
ROW_EVERY = 50
"""Steps between two rows of the log."""


class Store(Protocol):
    """Where a run's files lie; every storage of the service is one."""

    def read(self, key: str) -> bytes:
        """The whole file."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    def write(self, key: str, data: bytes) -> None:
        """Replace the file whole."""


@dataclass(frozen=True)
class Progress:
    """How a run stands."""

    step: int
    steps: int
    loss: float | None
    learning_rate: float
    steps_per_second: float
    seconds: float
    """Of work, over all sessions."""
    psnr_y: dict[float, tuple[float, float]] = field(default_factory=dict)
    """Last validation: scale -> dB of bicubic and of the network."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this speed."""
        return (self.steps - self.step) / self.steps_per_second if self.steps_per_second else None


@dataclass(frozen=True)
class Result:
    """What a finished run has made."""

    identity: checkpoint.Identity
    psnr_y: dict[float, tuple[float, float]]
    seconds: float


def train(
    trainer: Trainer,
    data: Dataset,
    store: Store,
    *,
    version: str,
    named: bool = True,
    command: str,
    events: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    before_save: Callable[[], None] = lambda: None,
    save_s: float = SAVE_S,
) -> Result:
    """Train from the first step, or from the last state that lies in the store, to the end.

    Args:
        version: name of the weights.
        named: whether somebody chose that name; if not, a run that goes on keeps the one it began with.
        command: for the card, so that somebody can do it again.
        events: a local folder for TensorBoard's file; if it is the store's own, TensorBoard follows it live.
        on_progress: called after every step; what it raises ends the run at that step, with its state saved.
        before_save: called before a state is saved; what it raises ends the run without saving, for a process that
            is not the run's owner any more must not put its state over the owner's.
        save_s: seconds between two saved states.

    Raises:
        NonFinite: training diverged.
        StateMismatch, DataChanged: the store holds a run of another recipe, or of other images.
    """
    session = _Session(trainer, data, store, events, on_progress, before_save, save_s)
    record = session.begin(version, named, command)
    session.work()
    return session.finish(record["version"], record["command"])


class _Session:
    """The time between a start and the end or the next kill."""

    def __init__(
        self,
        trainer: Trainer,
        data: Dataset,
        store: Store,
        events: Path,
        on_progress: Callable[[Progress], None],
        before_save: Callable[[], None],
        save_s: float,
    ) -> None:
        self.trainer, self.data, self.store = trainer, data, store
        self.on_progress, self.before_save, self.save_s = on_progress, before_save, save_s
        self.recipe = trainer.recipe
        self.rank, self.world = trainer.rank, trainer.world
        self.rows: list[dict[str, Any]] = []
        self.losses: list[torch.Tensor] = []
        self.events_folder = events
        self.events: Events | None = None
        self.earlier_s = 0.0
        self.started = time.monotonic()

    def begin(self, version: str, named: bool, command: str) -> dict[str, Any]:
        """Find out whether this is a new run, and write down what it is made with; that record."""
        record: dict[str, Any] = {
            "recipe": self.recipe.to_dict(),
            "version": version,
            "command": command,
            "data": {"digest": self.data.digest, "validation": self.data.validation_digest},
            "sessions": [],
        }
        if self.store.exists(RUN):
            earlier = _read_json(self.store, RUN)
            record = {**record, "sessions": earlier["sessions"], "data": earlier["data"]}
            if not named:
                record["version"] = earlier["version"]
            if earlier["recipe"] == record["recipe"]:
                record["command"] = earlier["command"]  # done again, the same file comes out
            if record["data"]["digest"] != self.data.digest:
                raise DataChanged(
                    "the images, or their split, are not those that the run began with (data.json lists them); "
                    "bring them back, or start a new run"
                )
        if self.store.exists(STATE):
            self.trainer.restore(self.store.read(STATE))
            self.rows = [row for row in _read_rows(self.store) if row["step"] <= self.trainer.step]
            self.earlier_s = max((row["seconds"] for row in self.rows), default=0.0)
        record["sessions"].append({"from_step": self.trainer.step, **environment(self.trainer)})
        if self.rank == 0:
            self.store.write(RUN, _json(record))
            self.store.write(DATA, _json(self.data.manifest))
            self.events = Events(self.events_folder)
            self.events.rewrite(self.rows)
        return record

    def work(self) -> None:
        """All steps that are left."""
        recipe, trainer = self.recipe, self.trainer
        patches = Patches(self.data.train, patch=recipe.patch, batch=recipe.batch, seed=recipe.seed)
        saved, first = -math.inf, trainer.step  # at once: a folder that cannot be written is told before hours of work
        for low, high in batches(patches, first, recipe.steps, share=slice(self.rank, None, self.world)):
            self.losses.append(trainer.train_step(low, high))
            if trainer.device.type == "cpu":  # on a card, looking at each loss would make the two wait in turn
                self._check(self.losses[-1])
            if trainer.step % ROW_EVERY == 0 or trainer.step == recipe.steps:
                self._add_row()
            if time.monotonic() - saved > self.save_s:
                self._save()
                saved = time.monotonic()
            try:
                if self.rank == 0:
                    self.on_progress(self._progress(first))
            except BaseException:
                self._save()  # only here: an exception within a step may leave it half done
                raise
        self._save()

    def finish(self, version: str, command: str) -> Result:
        """Write the weights."""
        seconds = self.rows[-1]["seconds"]  # not the time now: done again, the same file comes out
        notes = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "data": json.dumps({"digest": self.data.digest, "images": len(self.data.train)}),
            "command": command,
            "seconds": str(round(seconds)),
        }
        figures = _latest_validation(self.rows)
        if self.rank == 0:
            content = checkpoint.to_bytes(self.trainer.result, version=version, notes=notes)
            self.store.write(WEIGHTS, content)
        else:
            content = b""
        if self.events:
            self.events.close()
        identity = checkpoint.Identity(version, hashlib.sha256(content).hexdigest())
        return Result(identity, figures, seconds)

    def _seconds(self) -> float:
        return self.earlier_s + time.monotonic() - self.started

    def _check(self, loss: torch.Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise NonFinite(self.trainer.step - 1)

    def _add_row(self) -> None:
        loss = torch.stack(self.losses).mean()
        self._check(loss)
        self.losses.clear()
        step = self.trainer.step
        row: dict[str, Any] = {
            "step": step,
            "loss": round(loss.item(), 5),
            "learning_rate": float(f"{learning_rate(self.recipe, step - 1):.6g}"),
        }
        if self.rank == 0 and (step % self.recipe.validate_every == 0 or step == self.recipe.steps):
            exact = step == self.recipe.steps  # what publication and card tell; the rest only shows the way
            figures = validate(self.trainer.result, list(self.data.validation), exact=exact)
            row["psnr_y"] = {str(scale): [round(db, 4) for db in pair] for scale, pair in figures.items()}
        row["seconds"] = round(self._seconds(), 1)
        self.rows.append(row)
        if self.events:
            self.events.add(row)

    def _save(self) -> None:
        """The log first: rows behind the state's step are left out when it is read."""
        if self.rank != 0:
            return
        for loss in self.losses[-1:]:
            self._check(loss)
        if not _is_whole(self.trainer):
            raise NonFinite(self.trainer.step)
        self.before_save()
        self.store.write(LOG, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.store.write(STATE, self.trainer.state())
        if self.events:
            self.events.copy_to(self.store)

    def _progress(self, first: int) -> Progress:
        last = self.rows[-1] if self.rows else {}
        elapsed = time.monotonic() - self.started
        return Progress(
            step=self.trainer.step,
            steps=self.recipe.steps,
            loss=last.get("loss"),
            learning_rate=learning_rate(self.recipe, self.trainer.step - 1),
            steps_per_second=(self.trainer.step - first) / elapsed,
            seconds=self._seconds(),
            psnr_y=_latest_validation(self.rows),
        )


def environment(trainer: Trainer) -> dict[str, Any]:
    """What this session computes with."""
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "code": {"version": vdsr.__version__, "sha256": code_digest()},
        "processes": trainer.world,
        "bf16": trainer.bf16,
        "native": trainer.native,
        **describe(trainer.device),
    }


def code_digest() -> str:
    """Of this package's source: the version number alone does not tell what was changed in a working copy."""
    root = Path(vdsr.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _read_json(store: Store, key: str) -> dict[str, Any]:
    try:
        record = json.loads(store.read(key))
        return {name: record[name] for name in ("recipe", "command", "data", "sessions", "version")}
    except (ValueError, KeyError, TypeError) as exc:
        raise StateDamaged(key, exc) from exc


def _read_rows(store: Store) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in store.read(LOG).splitlines()]
        return [row for row in rows if row["step"] >= 0 and row["seconds"] >= 0]
    except (ValueError, KeyError, TypeError) as exc:
        raise StateDamaged(LOG, exc) from exc


def _latest_validation(rows: list[dict[str, Any]]) -> dict[float, tuple[float, float]]:
    for row in reversed(rows):
        if "psnr_y" in row:
            return {as_scale(scale): (pair[0], pair[1]) for scale, pair in row["psnr_y"].items()}
    return {}


def _is_whole(trainer: Trainer) -> bool:
    return all(bool(torch.isfinite(kernel).all()) for kernel in (*trainer.model.kernels, *trainer.average.kernels))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
