"""Which metrics are there, and what does each mean? Read by what counts, by what serves, and by the documents.

No label has a value per job, image or path: a time series would be left behind by each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Metric:
    """One family of time series."""

    name: str
    """As Prometheus shows it; a histogram's series have _bucket, _sum and _count behind it."""
    kind: str
    """counter, gauge or histogram."""
    unit: str
    meaning: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label -> its values, in words."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""

    @property
    def summary(self) -> str:
        """The first sentence, which stands on the page that is scraped."""
        return self.meaning.partition(". ")[0].partition(" ([")[0].replace("`", "").removesuffix(".")


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""From a thumbnail's decoding to a storage that is waited for (two minutes)."""
WAITS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 43200.0, 86400.0)
"""From an idle fleet to a day's backlog."""
GAINS = (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Around what VDSR gains on photographs (0.5 to 4 dB)."""
RELOADS = ("loaded", "refused", "unavailable")

IMAGES = Metric(
    "vdsr_images_total",
    "counter",
    "images",
    "Outcomes that this worker has recorded in the ledger. An image that is retried after a failure counts again, by "
    "its new outcome.",
    {
        "outcome": "`done`, `failed`, `skipped`",
        "code": "of a failure ([codes](errors.md#codes-of-images)), else empty",
    },
)
PIXELS = Metric(
    "vdsr_pixels_total", "counter", "pixels", "Pixels of the outputs that this worker has made and recorded."
)
STAGES = Metric(
    "vdsr_stage_seconds",
    "histogram",
    "seconds",
    "Time that one finished image spent in a stage. Stages of different images overlap; `network` is part of `upscale` "
    "and `score`; `wait` is for memory.",
    {"stage": "`wait`, `fetch`, `decode`, `upscale`, `network`, `score`, `encode`, `write`"},
    SECONDS,
)
QUEUE_WAIT = Metric(
    "vdsr_queue_wait_seconds",
    "histogram",
    "seconds",
    "From the moment a chunk's message was queued, by its sender's clock, until this worker had the chunk's lease. "
    "Clocks that differ shift it; it is never below 0.",
    buckets=WAITS,
)
GAIN = Metric(
    "vdsr_psnr_gain_db",
    "histogram",
    "dB",
    "PSNR-Y over bicubic of the images that have a finite one; what it is measured against is the job's matter "
    "([protocol](../protocol.md)). A gain may be negative and `_sum` fall, so that its `rate` means nothing: use "
    "`histogram_quantile`.",
    buckets=GAINS,
)
OOM = Metric(
    "vdsr_oom_retries_total",
    "counter",
    "attempts",
    "Computations that ran out of memory on the device and were planned again with smaller tiles.",
)
NONFINITE = Metric(
    "vdsr_nonfinite_total", "counter", "tiles", "Tiles that overflowed in bf16 and were computed again in fp32."
)
REDELIVERED = Metric(
    "vdsr_redelivered_total",
    "counter",
    "chunks",
    "Chunks that this worker took and that had been begun before: their worker died, lost Redis, or gave them back.",
)
RELOAD = Metric(
    "vdsr_model_reload_total",
    "counter",
    "reloads",
    "What became of promoted models that this worker was to take up: `refused` ones cannot be used, and the old one "
    "goes on; `unavailable` says that the registry did not answer, and is tried again.",
    {"result": ", ".join(f"`{result}`" for result in RELOADS)},
)
MODEL = Metric(
    "vdsr_model_info",
    "gauge",
    "",
    "1 for the model that a process of this worker last began a chunk with, 0 for one that it used before.",
    {"version": "of the model", "sha": "first twelve digits of the weights' SHA-256"},
)
TILE = Metric(
    "vdsr_tile_size",
    "gauge",
    "pixels",
    "Side of the tiles that torch computes, which shrinks when memory runs out; 0 where compiled code streams rows and "
    "has none. The smallest of this worker's processes.",
)

WORKER = (IMAGES, PIXELS, STAGES, QUEUE_WAIT, GAIN, OOM, NONFINITE, REDELIVERED, RELOAD, MODEL, TILE)
"""What each worker serves on VDSR_METRICS_PORT."""

DEPTH = Metric(
    "vdsr_queue_depth",
    "gauge",
    "messages",
    "Messages that wait in a queue, of chunks, plans and last records; not those that a worker has taken.",
    {"queue": "`upscale`, `train`"},
)
AGE = Metric(
    "vdsr_backlog_age_seconds",
    "gauge",
    "seconds",
    "Age of the message that has waited longest in a queue, by its sender's clock; 0 if none waits.",
    {"queue": "`upscale`, `train`"},
)
WORKERS = Metric(
    "vdsr_workers",
    "gauge",
    "workers",
    "Workers that have reported to Redis within the last 30 seconds.",
    {"queue": "`upscale`, `train`"},
)
JOBS = Metric("vdsr_jobs_open", "gauge", "jobs", "Jobs that have not ended.", {"state": "`queued`, `running`"})
WAITING = Metric(
    "vdsr_images_waiting",
    "gauge",
    "images",
    "Images of open jobs that are listed and have no outcome yet, those in hand included.",
)
IN_FLIGHT = Metric(
    "vdsr_images_in_flight",
    "gauge",
    "images",
    "Images that a worker which holds their chunk's lease has begun: read ahead, computed, or being written.",
)
CHUNKS = Metric(
    "vdsr_chunks_open",
    "gauge",
    "chunks",
    "Chunks of open jobs that are not committed. A job lists at most 1,000 ahead.",
    {"state": "`queued`, `leased`"},
)
REDIS_UP = Metric("vdsr_redis_up", "gauge", "", "1 if Redis answered this scrape, else 0; the others are missing then.")

FLEET = (DEPTH, AGE, WORKERS, JOBS, WAITING, IN_FLIGHT, CHUNKS, REDIS_UP)
"""What `vdsr metrics` serves, once for the whole fleet."""
