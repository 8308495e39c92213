"""When does a worker leave word of itself (worker.health)? By Celery's signals, where VDSR_HEALTH_DIR is set.

Its child says that it is alive while it gets on with a task: a picture or a training may take hours, and Redis may be
away meanwhile. It loads the model before it is asked to, so that `ready` means what it says.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery.signals import celeryd_after_setup, task_postrun, task_prerun, worker_process_init

from vdsr.errors import VdsrError
from worker import health
from worker.app import TRAINING
from worker.errors import TransientError
from worker.runtime import Runtime, runtime
from worker.settings import Settings, load_settings

EVERY_S = 2.0
RETRY_S = 10.0
"""Between two attempts to load a model that cannot be had."""

log = logging.getLogger(__name__)

_working = threading.Event()


@celeryd_after_setup.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _begin(instance: Any, **_: Any) -> None:
    mine = _health(load_settings())
    if mine is not None:
        mine.begin(list(instance.app.amqp.queues.consume_from))
        health.become(mine)


@worker_process_init.connect  # type: ignore[untyped-decorator]  # as above
def _begin_child(**_: Any) -> None:
    settings = load_settings()
    mine = _health(settings)
    if mine is None:
        return
    health.become(mine)
    threading.Thread(target=_tell, args=(mine, settings.stuck_s), name="heartbeat", daemon=True).start()
    # On a thread of its own, since Celery gives a child only so long to come up; `runtime` is made before, once.
    threading.Thread(target=_load, args=(mine, runtime()), name="load", daemon=True).start()


@task_prerun.connect  # type: ignore[untyped-decorator]  # as above
def _work(**_: Any) -> None:
    health.progress()
    _working.set()


@task_postrun.connect  # type: ignore[untyped-decorator]  # as above
def _rest(**_: Any) -> None:
    _working.clear()


def _health(settings: Settings) -> health.Health | None:
    return health.Health(settings.health_dir) if settings.health_dir else None


def _tell(mine: health.Health, stuck_s: float) -> None:
    """Say that this process is alive, for as long as it gets on."""
    while True:
        _working.wait()
        if health.since_progress_s() < stuck_s:
            mine.beat()
        time.sleep(min(EVERY_S, stuck_s / 4))


def _load(mine: health.Health, here: Runtime) -> None:
    """Have what this worker's tasks need, and say so."""
    while True:
        try:
            mine.loaded(_training_device(here.settings) if TRAINING in mine.queues() else here.models.warm())
        except (VdsrError, TransientError, OSError) as exc:
            log.warning("not ready, trying again in %g s: %s", RETRY_S, exc)
            time.sleep(RETRY_S)
        else:
            return


def _training_device(settings: Settings) -> str:
    from vdsr.device import choose_device
    from worker.training import require_training

    require_training()
    return str(choose_device(settings.device))
