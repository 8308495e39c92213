"""How does a worker's log read? As Celery writes it, or as JSON lines (VDSR_LOG_FORMAT=json) with the ids in fields.

Names of files stand in messages, and belong to whoever made the files. So no message can end a line: in JSON everything
is escaped, and in text a further line of the same message is indented, and what cannot be printed is escaped.
Passwords in URLs are masked where messages are made; here once more, should one come by another way.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery.signals import (
    after_setup_logger,
    after_setup_task_logger,
    celeryd_after_setup,
    celeryd_init,
    worker_process_init,
)

from worker.settings import load_settings

JSON = "json"
IDS = ("worker", "job", "chunk", "image", "model", "run")
"""Fields of a line that say what it is about; see `concerning`, and `extra` of a line."""

_PASSWORD = re.compile(r"(\w://[^\s/:@]*):[^\s/@]+@")
_ARGUMENTS = re.compile(r"\('([\w-]{1,64})',?(?: (\d+))?,?\)")
"""As Celery shows those of our messages."""

_about: dict[str, Any] = {}
# Of the process, not of a thread: it does one chunk at a time, whose pictures are read and written by threads.


@contextmanager
def concerning(**ids: object) -> Iterator[None]:
    """Lines of this process are about these, for as long as the block runs: see IDS."""
    before = dict(_about)
    _about.update(ids)
    try:
        yield
    finally:
        _about.clear()
        _about.update(before)


def note(**ids: object) -> None:
    """The same until the block around it ends."""
    _about.update(ids)


class Text(logging.Formatter):
    """Another formatter's line, which nothing in its message can end."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """One line, and indented ones behind it."""
        safe = copy.copy(record)
        safe.msg, safe.args = _indented(record.getMessage()), None
        if record.exc_info:
            safe.exc_text = "    " + _indented(self.inner.formatException(record.exc_info))
        return _masked(self.inner.format(safe))


class Json(logging.Formatter):
    """An object a line: time, level, logger, message, process, what it is about, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, in ASCII."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _masked(record.getMessage()),
            "process": record.processName,
            "pid": record.process,
            **_about,
            **_of_task(record),
            **{name: getattr(record, name) for name in IDS if hasattr(record, name)},
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = _masked(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def to_stderr(log_format: str) -> None:
    """Warnings of a process that is no worker go to stderr."""
    handler = logging.StreamHandler()
    text = Text(logging.Formatter("[%(asctime)s: %(levelname)s] %(message)s"))
    handler.setFormatter(Json() if log_format == JSON else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _of_task(record: logging.LogRecord) -> dict[str, Any]:
    """What a line of Celery's about one of our messages concerns."""
    data = getattr(record, "data", None)
    if not isinstance(data, dict) or not str(data.get("name")).startswith("vdsr."):
        return {}
    found = _ARGUMENTS.fullmatch(str(data.get("args")))
    if not found:
        return {}
    ids: dict[str, Any] = {"run" if data["name"] == "vdsr.train" else "job": found[1]}
    if found[2]:
        ids["chunk"] = int(found[2])
    return ids


def _indented(text: str) -> str:
    lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in text.rstrip("\n").split("\n"))
    return "\n    ".join(lines)


def _masked(text: str) -> str:
    return _PASSWORD.sub(r"\1:***@", text)


@after_setup_logger.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
@after_setup_task_logger.connect  # type: ignore[untyped-decorator]  # as above
def _set_formatters(logger: logging.Logger, **_: Any) -> None:
    as_json = load_settings().log_format == JSON
    for handler in (*logger.handlers, *logging.getLogger("multiprocessing").handlers):
        if handler.formatter is not None and not isinstance(handler.formatter, (Text, Json)):
            handler.setFormatter(Json() if as_json else Text(handler.formatter))


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]  # as above
def _hush(**_: Any) -> None:
    """The line of a child's first moment, for which Celery hands the format on by a variable."""
    if load_settings().log_format == JSON:
        os.environ.pop("_MP_FORK_LOGLEVEL_", None)


@worker_process_init.connect  # type: ignore[untyped-decorator]  # as above
def _name(sender: str, **_: Any) -> None:
    note(worker=sender)


@celeryd_init.connect  # type: ignore[untyped-decorator]  # as above
def _begin(sender: str, instance: Any, **_: Any) -> None:
    """Before Celery sets up its logging, and before all that it prints by other ways."""
    note(worker=sender)
    if load_settings().log_format != JSON:
        return
    from celery.apps import worker as celery_worker

    instance.quiet = True  # without its banner
    celery_worker.safe_say = _say  # "warm shutdown", from a signal handler that may not log

    warnings.showwarning = lambda message, category, *_, **__: _say(f"{category.__name__}: {message}", level="WARNING")


def _say(message: str, file: Any = None, *, level: str = "INFO") -> None:
    """One line, by one write, that takes no lock."""
    number = logging.getLevelNamesMapping()[level]
    record = logging.LogRecord("celery.worker", number, "", 0, message, (), None)
    os.write((file or sys.__stderr__ or sys.stderr).fileno(), (Json().format(record) + "\n").encode())
