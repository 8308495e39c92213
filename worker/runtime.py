"""What does one worker process hold? Its settings, ledger and queue, and the network once it is first needed."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cached_property, lru_cache
from threading import Lock

from celery import current_app

from worker.app import Queue
from worker.errors import TransientError
from worker.fleet import Fleet
from worker.ledger import Ledger
from worker.metrics.meter import Meter
from worker.metrics.page import make_meter
from worker.models import Models
from worker.settings import Settings, load_settings
from worker.training.ledger import RunLedger


class Runtime:
    """Everything that tasks of this process share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.redis_url)
        self.fleet = Fleet(settings.redis_url)
        self.runs = RunLedger(settings.redis_url)
        self.queue = Queue(settings, current_app)
        self._making = Lock()

    @cached_property
    def meter(self) -> Meter:
        """What counts what this process does."""
        return make_meter(self.settings)

    @property
    def models(self) -> Models:
        """The networks on this worker's device; loaded by the process that uses them, never before a fork."""
        with self._making:  # two threads may ask: a task, and the one that loads ahead of it (worker.heartbeat)
            return self._models

    @cached_property
    def _models(self) -> Models:
        import numpy as np  # noqa: F401  # so that its BLAS is there to be told
        import torch
        from threadpoolctl import threadpool_limits

        from vdsr.device import cores
        from vdsr.upscale import Upscaler

        s = self.settings
        torch.backends.cudnn.allow_tf32 = False  # for the whole process: two threads may compute, one of them a check
        torch.set_num_threads(s.threads or cores())
        # Bicubic's products are small, and made on several threads of ours beside the network: BLAS' own threads would
        # wait for one another by spinning, and take four times as long for it.
        threadpool_limits(1, user_api="blas")
        return Models(
            s,
            lambda weights: Upscaler(weights, device=s.device, precision=s.precision, tile=s.tile, engine=s.engine),
            on_refused=self._tell_refusal,
            on_reload=self.meter.reloaded,
        )

    def _tell_refusal(self, version: str, reason: str) -> None:
        with suppress(TransientError):  # it stands in the log all the same
            self.fleet.report_refusal(version, f"{platform.node()}: {reason}")


@lru_cache(maxsize=1)
def runtime() -> Runtime:
    """The runtime of this process."""
    return Runtime(load_settings())
