"""What does one worker serve on VDSR_METRICS_PORT? What all of its processes counted, living and dead.

They count into files of a folder that belongs to this worker alone (prometheus_client's multi-process mode), which
Celery's parent process reads at each scrape. What a process that has ended left behind is added to one file for all of
those, so that a thousand deaths take no more room than one; its gauges go with it.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.signals import celeryd_after_setup

from worker.metrics.meter import Counting, Meter, make_counters
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "vdsr-metrics-"
"""Of the folders in the temporary folder."""
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client looks for the folder, in the parent and in the children that inherit it."""
AGAIN_S = 15.0
"""Between two tries at a port that is taken: the worker before this one may just be ending."""

log = logging.getLogger(__name__)


def make_meter(settings: Settings) -> Meter:
    """Of a process that works: one that counts if its parent has made it a folder."""
    if not settings.metrics_port or VARIABLE not in os.environ:
        return Meter()
    _use_files()
    return Counting()


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _start(**_: Any) -> None:
    """Before the pool's processes start, so that they inherit the variable."""
    settings = load_settings()
    os.environ.pop(VARIABLE, None)  # another program's, whose figures are none of ours
    if not settings.metrics_port:
        return
    try:
        os.environ[VARIABLE] = str(make_folder(Path(tempfile.gettempdir())))
    except OSError as exc:
        log.warning("no metrics: no folder for them in %s: %s", tempfile.gettempdir(), exc)
        return
    _use_files()
    make_counters()  # of this process: series at 0, before any child has counted
    Server(Path(os.environ[VARIABLE]), settings.metrics_host, settings.metrics_port).start()


def _use_files() -> None:
    """prometheus_client decides that when it is imported, which Flower's plugin does before there is a folder."""
    from prometheus_client import values

    values.ValueClass = values.get_value_class()


def make_folder(parent: Path) -> Path:
    """A new folder that is this process' own as long as it lives; those of workers that were killed are removed."""
    for old in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # of another user
            if _lock(old) is not None:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = _lock(folder)
    assert lock is not None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the lock goes with this process
    return folder


def _lock(folder: Path) -> int | None:
    """The lock of a folder as an open file, free again when it is closed or this process ends; None if held."""
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


class Server(threading.Thread):
    """Serves the page, as soon as the port can be had."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        super().__init__(name="metrics", daemon=True)
        self.folder, self.host, self.port = folder, host, port

    def run(self) -> None:
        """Until the port is ours; the server has a thread of its own."""
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(Counted(self.folder))
        told = False
        while True:
            try:
                start_http_server(self.port, self.host, registry)
            except OSError as exc:
                if not told:
                    log.warning(
                        "no metrics yet: cannot listen on %s port %d (%s); each worker on a host needs its own "
                        "VDSR_METRICS_PORT. It works without, and tries again",
                        self.host,
                        self.port,
                        exc.strerror,
                    )
                told = True
                threading.Event().wait(AGAIN_S)
            else:
                log.info("metrics are served on %s port %d", self.host, self.port)
                return


class Counted:
    """The sums over all files of a folder, for prometheus_client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()  # scrapes come on threads of their own

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client's collectors."""
        from prometheus_client.multiprocess import MultiProcessCollector

        with self._lock:
            self._gather()
            return list(MultiProcessCollector.merge([str(path) for path in self._files()], accumulate=True))

    def _files(self) -> Iterator[Path]:
        for path in self.folder.glob("*.db"):
            if path.stat().st_size:  # one that is being made, or whose process died over it, is empty
                yield path

    def _gather(self) -> None:
        """Add what ended processes counted to one file, and forget what they were like."""
        from prometheus_client.mmap_dict import MmapedDict

        for path in list(self._files()):
            kind, _, owner = path.stem.rpartition("_")
            if owner == "ended" or _lives(int(owner)):
                continue
            if not kind.startswith("gauge"):
                total = MmapedDict(str(path.with_name(f"{kind}_ended.db")))
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                    total.write_value(key, total.read_value(key)[0] + value, 0.0)
                total.close()
            path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's by now
        return False
    return True
