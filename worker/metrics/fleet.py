"""What belongs to the fleet and to no one worker? Asked of Redis at each scrape, by `vdsr metrics`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from worker.app import QUEUE, TRAINING
from worker.errors import NotFound, TransientError
from worker.fleet import Fleet
from worker.ledger import Ledger
from worker.metrics import catalogue
from worker.metrics.catalogue import Metric

if TYPE_CHECKING:
    from prometheus_client.metrics_core import GaugeMetricFamily

log = logging.getLogger(__name__)


class Observed:
    """Queues, workers and open jobs of one Redis, for prometheus_client."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of Redis.
        """
        self.fleet, self.ledger = Fleet(url), Ledger(url)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus_client's collectors; of a Redis that is away, that it is."""
        try:
            found = [*self._queues(), *self._jobs()]
        except TransientError as exc:
            log.warning("%s", exc)
            found = []
        yield from found
        yield _family(catalogue.REDIS_UP, {(): float(bool(found))})

    def _queues(self) -> Iterator[GaugeMetricFamily]:
        queues = (QUEUE, TRAINING)
        yield _family(catalogue.DEPTH, {(queue,): self.fleet.queue_length(queue) for queue in queues})
        yield _family(catalogue.AGE, {(queue,): self.fleet.oldest_s(queue) for queue in queues})
        yield _family(catalogue.WORKERS, {(queue,): len(self.fleet.workers(queue)) for queue in queues})

    def _jobs(self) -> Iterator[GaugeMetricFamily]:
        jobs, chunks = Counter(queued=0, running=0), Counter(queued=0, leased=0)
        waiting = in_flight = 0
        for job_id in self.ledger.active():
            with suppress(NotFound):  # it has just ended
                record = self.ledger.record(job_id)
                if record.state.ended:
                    continue
                jobs[record.state.value] += 1
                waiting += record.left
                queued, leased, begun = self.ledger.in_hand(job_id)
                chunks.update(queued=queued, leased=leased)
                in_flight += begun
        yield _family(catalogue.JOBS, {(state,): count for state, count in jobs.items()})
        yield _family(catalogue.WAITING, {(): waiting})
        yield _family(catalogue.IN_FLIGHT, {(): in_flight})
        yield _family(catalogue.CHUNKS, {(state,): count for state, count in chunks.items()})


def _family(metric: Metric, values: dict[tuple[str, ...], float]) -> GaugeMetricFamily:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(metric.name, metric.summary, labels=tuple(metric.labels))
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
