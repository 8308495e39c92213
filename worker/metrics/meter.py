"""Who counts? The process that works, as soon as the ledger has taken what it counts.

Its figures lie in files that the parent process reads (worker.metrics.page): a child that is killed leaves them behind.
An image is counted after Redis has recorded it. So a kill between the two loses the count of what was recorded in that
one step, and nothing is counted twice by a repeated message; an image that Redis itself forgot (a server that lost its
last second, or all) is done and counted again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import vdsr.errors
import worker.errors
from worker.jobs import Model, Outcome
from worker.metrics import catalogue
from worker.metrics.catalogue import Metric

if TYPE_CHECKING:
    from vdsr.engine import Engine

GAUGES: dict[str, Literal["livemax", "livemin"]] = {catalogue.MODEL.name: "livemax", catalogue.TILE.name: "livemin"}
"""How the figures of a worker's living processes become one."""


class Meter:
    """Counts nothing: what a worker without VDSR_METRICS_PORT has."""

    def leased(self, wait_s: float | None, *, again: bool) -> None:
        """A chunk is ours.

        Args:
            wait_s: since its message was queued, where that is known.
            again: it was begun before.
        """

    def recorded(self, rows: Iterable[Outcome]) -> None:
        """The ledger has these outcomes."""

    def computed(self, engine: Engine) -> None:
        """An engine has done some work, or failed at it."""

    def reloaded(self, result: str) -> None:
        """What became of a promoted model: one of `catalogue.RELOADS`."""

    def serves(self, model: Model) -> None:
        """A chunk begins with a model."""


class Counting(Meter):
    """Counts into the files of this process; see `worker.metrics.page`."""

    def __init__(self) -> None:
        self._of = make_counters()
        self._gauges: dict[str, Any] = {}
        self._models: set[Model] = set()
        self._seen: WeakKeyDictionary[Engine, tuple[int, int]] = WeakKeyDictionary()

    def leased(self, wait_s: float | None, *, again: bool) -> None:
        """As `Meter`."""
        if wait_s is not None:
            self._of[catalogue.QUEUE_WAIT.name].observe(max(0.0, wait_s))
        if again:
            self._of[catalogue.REDELIVERED.name].inc()

    def recorded(self, rows: Iterable[Outcome]) -> None:
        """As `Meter`."""
        for row in rows:
            self._of[catalogue.IMAGES.name].labels(outcome=row.outcome, code=row.code or "").inc()
            self._of[catalogue.PIXELS.name].inc((row.width or 0) * (row.height or 0))
            for stage, seconds in row.seconds.items():
                self._of[catalogue.STAGES.name].labels(stage=stage).observe(seconds)
            gain = (row.psnr or {}).get("gain")
            if isinstance(gain, float):  # not one that is infinite, or could not be had
                self._of[catalogue.GAIN.name].observe(gain)

    def computed(self, engine: Engine) -> None:
        """As `Meter`."""
        relieved, redone = self._seen.get(engine, (0, 0))
        self._of[catalogue.OOM.name].inc(engine.relieved - relieved)
        self._of[catalogue.NONFINITE.name].inc(engine.redone - redone)
        self._seen[engine] = engine.relieved, engine.redone
        self._gauge(catalogue.TILE).set(engine.tile)

    def reloaded(self, result: str) -> None:
        """As `Meter`."""
        self._of[catalogue.RELOAD.name].labels(result=result).inc()

    def serves(self, model: Model) -> None:
        """As `Meter`."""
        self._models.add(model)
        for each in self._models:
            info = self._gauge(catalogue.MODEL).labels(version=each.version, sha=each.sha256[:12])
            info.set(1 if each == model else 0)

    def _gauge(self, metric: Metric) -> Any:
        """Made when it is first set: at its 0 until then, it would count among the processes' figures."""
        if metric.name not in self._gauges:
            self._gauges[metric.name] = _instrument(metric)
        return self._gauges[metric.name]


def make_counters() -> dict[str, Any]:
    """Prometheus' counters and histograms of a worker, by name, with those of their series at 0 that are known.

    A series that begins at 1 shows no increase, so that its first failure would raise no alert.
    """
    made = {metric.name: _instrument(metric) for metric in catalogue.WORKER if metric.kind != "gauge"}
    for outcome in ("done", "skipped"):
        made[catalogue.IMAGES.name].labels(outcome=outcome, code="")
    for code in failure_codes():
        made[catalogue.IMAGES.name].labels(outcome="failed", code=code)
    for result in catalogue.RELOADS:
        made[catalogue.RELOAD.name].labels(result=result)
    return made


def failure_codes() -> list[str]:
    """Every code that an image's failure may have."""
    kinds = [*vars(vdsr.errors).values(), *vars(worker.errors).values()]
    carried = {kind.code for kind in kinds if isinstance(kind, type) and hasattr(kind, "code")}
    return sorted((carried | {"crashed", "folder_unreadable", "name_collision"}) - {vdsr.errors.ImageError.code})


def _instrument(metric: Metric) -> Any:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    labels, text, registry = tuple(metric.labels), metric.summary, CollectorRegistry()
    if metric.kind == "counter":
        return Counter(metric.name, text, labels, registry=registry)
    if metric.kind == "histogram":
        return Histogram(metric.name, text, labels, buckets=metric.buckets, registry=registry)
    return Gauge(metric.name, text, labels, registry=registry, multiprocess_mode=GAUGES[metric.name])
