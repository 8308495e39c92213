"""How is a run done? Read the images, train from where it stands, write the report: the same here and on a worker."""

from __future__ import annotations

import fcntl
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vdsr import checkpoint
from vdsr.data import Dataset
from vdsr.device import choose_device, cores
from vdsr.model import VDSR
from vdsr.training.report import write_report
from vdsr.training.run import LOG, RUN, Progress, Result, train
from vdsr.training.trainer import Trainer
from worker.errors import JobStopped, UsageError
from worker.registry import SHIPPED
from worker.settings import Settings
from worker.storage import Storage
from worker.storage.local import LocalStorage
from worker.training.dataset import read_dataset
from worker.training.runs import Run
from worker.uris import open_storage

LOCK = ".lock"
"""In a run's folder: held by the command that trains there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """Who wants to know how a run goes; what the first two raise stops it, with its state saved."""

    on_image: Callable[[int, int], None] = lambda done, total: None
    """Images read, and their total."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    before_save: Callable[[], None] = lambda: None
    """What this raises stops the run without saving."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    result: Result
    data: Dataset
    store: Storage
    device: torch.device


def do_run(run: Run, settings: Settings, watch: Watch) -> Trained:
    """Do what is left of a run.

    Raises:
        UsageError: too few images.
        NonFinite, StateMismatch, DataChanged: see vdsr.training.run.
    """
    torch.set_num_threads(settings.threads or cores())
    store = open_storage(run.folder, settings)
    data = read_dataset(run.data, run.recipe.scales, run.held, settings, on_image=watch.on_image)
    trainer = Trainer(run.recipe, _device(settings), compiled=run.compiled, start=_start(run, settings))
    with _events(store) as events:
        try:
            result = train(
                trainer,
                data,
                store,
                version=run.version,
                named=run.version != run.id,
                command=run.command,
                events=events,
                on_progress=watch.on_progress,
                before_save=watch.before_save,
            )
        except (JobStopped, KeyboardInterrupt):
            _report(trainer, data, store)
            raise
    _report(trainer, data, store)
    return Trained(result, data, store, trainer.device)


def _report(trainer: Trainer, data: Dataset, store: Storage) -> None:
    """Write the run's report, from what is saved."""
    if trainer.rank != 0 or not store.exists(LOG):
        return
    rows = [json.loads(line) for line in store.read(LOG).splitlines()]
    try:
        html = write_report(json.loads(store.read(RUN)), rows, trainer.result, data.validation)
    except Exception:  # hours of training must not be lost for a picture of them
        log.exception("the report of the run could not be made")
    else:
        store.write("report.html", html.encode())


@contextmanager
def together(device: str) -> Iterator[bool]:
    """Join the other processes that torchrun has started, if it has; whether this one speaks for all.

    Args:
        device: as in VDSR_DEVICE.
    """
    if not torch.distributed.is_torchelastic_launched():
        yield True
        return
    torch.distributed.init_process_group("nccl" if choose_device(device).type == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank() == 0
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def alone(folder: str, settings: Settings) -> Iterator[None]:
    """Keep other commands of this machine out of a run's folder; workers of the queue have their leases.

    Raises:
        UsageError: another process trains there.
    """
    store = open_storage(folder, settings)
    if not isinstance(store, LocalStorage):
        yield
        return
    store.create(LOCK, b"")
    with Path(store.uri, LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UsageError(f"another process trains in {folder}; wait for it, or choose another --run") from exc
        yield


def _device(settings: Settings) -> torch.device:
    """The device of this process: under torchrun each takes a card of its own."""
    device = choose_device(settings.device)
    if torch.distributed.is_initialized() and device.type == "cuda":
        device = choose_device(f"cuda:{torch.distributed.get_node_local_rank()}")
        torch.cuda.set_device(device)
    return device


def _start(run: Run, settings: Settings) -> VDSR | None:
    if run.start is None:
        return None
    if run.start == SHIPPED:
        return checkpoint.load()[0]
    folder, _, name = run.start.rpartition("/")
    model, _ = checkpoint.parse(open_storage(folder or "/", settings).read(name), run.start)
    return model


@contextmanager
def _events(store: Storage) -> Iterator[Path]:
    """A local folder for TensorBoard's file: the run's own where that is local."""
    if isinstance(store, LocalStorage):
        yield Path(store.uri) / "tensorboard"
    else:
        with tempfile.TemporaryDirectory(prefix="vdsr-") as folder:
            yield Path(folder)
