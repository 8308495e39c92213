"""Which weights does a job use, and how does a worker come to have them?

A job pins a version when it is submitted, unless it follows production. Clients decide by `choose`, workers hold the
networks in `Models`: a new one is loaded and tried while the old one serves, and a bad one is refused.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vdsr import checkpoint, stand_in
from vdsr.errors import CheckpointError
from vdsr.stand_in import stand_in_seconds
from worker.errors import NotFound, StorageError, StorageUnavailable
from worker.jobs import Job, Model
from worker.registry import FOLLOW, PRODUCTION, SHIPPED, Alias, Registry
from worker.settings import Settings

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler

KEPT = 2
"""Networks in memory: the one that serves, and the one before or after it."""

PAUSE_S = 5.0
"""After a failed look at the registry, before beats ask for the next."""

log = logging.getLogger(__name__)


def choose(name: str | None, settings: Settings) -> tuple[Model, bool]:
    """The model of a new job, and whether the job follows production from there.

    Args:
        name: a version, an alias, "shipped", "follow", a stand-in for benchmarks ("timed:0.01"), or None for what is
            in use: VDSR_WEIGHTS, else the registry's production, else the weights that ship.

    Raises:
        NotFound: no such version.
    """
    if stand_in_seconds(name) is not None:
        assert name is not None
        return _stand_in(name), False
    if name == SHIPPED or (name is None and settings.weights):
        identity = checkpoint.identify(checkpoint.SHIPPED if name else settings.weights or checkpoint.SHIPPED)
        return Model(identity.version, identity.sha256), False
    registry = Registry(settings)
    if name in (None, FOLLOW):
        alias = registry.alias(PRODUCTION)
        if alias is not None:
            return Model(alias.version, alias.sha256), name == FOLLOW
        identity = checkpoint.identify()
        return Model(identity.version, identity.sha256), name == FOLLOW
    version = registry.version(name)
    return Model(version.name, version.sha256), False


def is_stand_in(model: Model) -> bool:
    """Whether a job measures the fleet, and its outputs are no pictures (vdsr.stand_in)."""
    return stand_in_seconds(model.version) is not None and model == _stand_in(model.version)


def _stand_in(name: str) -> Model:
    identity = stand_in.identity(name)
    return Model(identity.version, identity.sha256)


def find_weights(model: Model, settings: Settings) -> tuple[Path | bytes, str | None]:
    """A model's checkpoint, and what its publisher recorded that it makes of the known tile, if it was published.

    Raises:
        CheckpointError: nobody here has it, or it is damaged.
    """
    for path in filter(None, (settings.weights, checkpoint.SHIPPED)):
        if checkpoint.identify(path).sha256 == model.sha256:
            return path, None
    registry = Registry(settings)
    try:
        version = registry.version(model.version)
    except NotFound as exc:
        raise CheckpointError(
            f"the job asks for model {model.version} ({model.sha256[:12]}), which is neither the one that ships "
            f"here, nor VDSR_WEIGHTS, nor in the registry {registry.uri}; give clients and workers the same "
            "VDSR_REGISTRY"
        ) from exc
    if version.sha256 != model.sha256:
        raise CheckpointError(
            f"version {model.version} in {registry.uri} is {version.sha256[:12]}, and the job asks for "
            f"{model.sha256[:12]}; give clients and workers the same VDSR_REGISTRY"
        )
    return registry.weights(version), version.smoke


class Models:
    """The networks of one worker process."""

    def __init__(
        self,
        settings: Settings,
        make: Callable[[bytes | Path], Upscaler],
        on_refused: Callable[[str, str], None] = lambda version, reason: None,
        on_reload: Callable[[str], None] = lambda result: None,
    ) -> None:
        """
        Args:
            make: loads a checkpoint on this worker's device.
            on_refused: called with a promoted version that cannot be used, and why.
            on_reload: called with what became of a promotion: "loaded", "refused" or "unavailable".
        """
        self.settings, self.make, self.on_refused, self.on_reload = settings, make, on_refused, on_reload
        self._loaded: OrderedDict[str, Upscaler] = OrderedDict()
        self._followed: Model | None = None
        self._serial: int | None = None
        self._look_again = 0.0  # monotonic time
        self._state = threading.Lock()  # for the fields above; never held while anything is read or loaded
        self._loading = threading.Lock()  # one thread at a time loads
        self._thread: threading.Thread | None = None

    def for_job(self, job: Job, serial: int) -> Upscaler:
        """The network for a chunk of a job that starts now.

        Args:
            serial: of the last promotion that Redis knows of; 0 for none.

        Raises:
            CheckpointError: a pinned model that cannot be had, or is bad.
            StorageUnavailable: the registry does not answer.
        """
        if not job.follow:
            return self._get(job.model)
        with self._loading:
            self._catch_up(serial)
        return self._get(self._followed or job.model)

    def warm(self) -> str:
        """Load what a job of now would use; its version.

        Raises:
            CheckpointError: it is bad, or cannot be had.
            StorageUnavailable: the registry does not answer.
        """
        model, _ = choose(None, self.settings)
        self._get(model)
        return model.version

    def notice(self, serial: int) -> None:
        """Something was promoted: load it on a thread of its own, so that neither this chunk nor the next must wait."""
        if not self._is_news(serial) or time.monotonic() < self._look_again:
            return
        if self._serial is None or (self._thread is not None and self._thread.is_alive()):
            return  # this worker follows nothing yet, or is at it
        self._thread = threading.Thread(target=self._reload, args=(serial,), name="reload", daemon=True)
        self._thread.start()

    def _reload(self, serial: int) -> None:
        with self._loading:
            self._catch_up(serial)

    def _is_news(self, serial: int) -> bool:
        return self._serial is None or serial > self._serial

    def _catch_up(self, serial: int) -> None:
        """Take up the production model, if it may be another than the last one seen."""
        if not self._is_news(serial):
            return
        registry = Registry(self.settings)
        try:
            alias = registry.alias(PRODUCTION)
            if alias is not None and not self._take_up(Model(alias.version, alias.sha256)):
                self._fall_back(registry, alias)
        except (CheckpointError, StorageUnavailable, StorageError) as exc:
            log.warning("cannot look for a new model, so the old one goes on: %s", exc)
            self.on_reload("unavailable")
            self._look_again = time.monotonic() + PAUSE_S
            return
        # What was read may be older than what was announced (a cache of NFS): then the next chunk looks again.
        self._serial = alias.serial if alias else 0

    def _take_up(self, model: Model) -> bool:
        """Follow a promoted model from now on, if it can be used."""
        started = time.monotonic()
        try:
            self._ready(model)
        except (CheckpointError, RuntimeError) as exc:  # torch's own: out of memory, a broken kernel, ...
            log.error(
                "model %s is refused, the old one goes on: %s", model.version, exc, extra={"model": model.version}
            )
            self.on_refused(model.version, str(exc))
            self.on_reload("refused")
            return False
        if self._followed != model:
            took = time.monotonic() - started
            log.info("model %s is in use, after %.2f s", model.version, took, extra={"model": model.version})
            self.on_reload("loaded")
        self._followed = model
        return True

    def _fall_back(self, registry: Registry, alias: Alias) -> None:
        """A process that has just started has no old model: the last good one before the bad one."""
        for name in reversed(alias.history):
            if self._followed is not None:
                return
            with suppress(NotFound, CheckpointError):
                version = registry.version(name)
                self._take_up(Model(version.name, version.sha256))

    def _get(self, model: Model) -> Upscaler:
        """A network, loaded if it must be."""
        found = self._found(model)
        if found is not None:
            return found
        with self._loading:
            return self._ready(model)

    def _ready(self, model: Model) -> Upscaler:
        """The same, for a thread that may load."""
        found = self._found(model)
        if found is not None:
            return found
        upscaler = self._load(model)
        with self._state:
            self._loaded[model.sha256] = upscaler
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        return upscaler

    def _found(self, model: Model) -> Upscaler | None:
        with self._state:
            if model.sha256 in self._loaded:
                self._loaded.move_to_end(model.sha256)
            return self._loaded.get(model.sha256)

    def _load(self, model: Model) -> Upscaler:
        from vdsr import smoke

        if is_stand_in(model):
            return stand_in.make_stand_in(model.version)
        weights, recorded = find_weights(model, self.settings)
        upscaler = self.make(weights)
        if recorded is not None:
            smoke.check(upscaler, recorded)
        return upscaler
