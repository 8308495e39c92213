"""What does one worker process hold? Its settings, ledger and queue, and the network once it is first needed."""

from __future__ import annotations

import os
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from celery import current_app

from worker.app import Queue
from worker.ledger import Ledger
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler


class Runtime:
    """Everything that tasks of this process share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.redis_url)
        self.queue = Queue(settings, current_app)

    @cached_property
    def upscaler(self) -> Upscaler:
        """The network on this worker's device; loaded by the process that uses it, never before a fork."""
        import torch

        from vdsr.upscale import Upscaler

        torch.set_num_threads(self.settings.threads or os.cpu_count() or 1)
        s = self.settings
        return Upscaler(s.weights, device=s.device, precision=s.precision, tile=s.tile)


@lru_cache(maxsize=1)
def runtime() -> Runtime:
    """The runtime of this process."""
    return Runtime(load_settings())
