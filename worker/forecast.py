"""What would a job do, and what would it cost? Looks at source and destination, and writes nothing.

What is done, skipped and refused by name or size is counted, image by image. Pixels are estimated from the headers of
a sample, and where a format has none in it from typical bytes a pixel; time from the speed of earlier jobs.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from vdsr.errors import FileTooLarge, ImageEmpty, ImageError
from vdsr.resize import scaled_size
from worker.errors import BrokerRefused, BrokerUnreachable, NewerFormat, NotFound, StorageError, StorageUnavailable
from worker.filelist import Named
from worker.formats import IMAGE_SUFFIXES, output_format
from worker.images import Header, check_output, decode
from worker.jobs import Image, Job, State
from worker.ledger import Ledger
from worker.memory import file_bytes
from worker.parts import job_ids
from worker.plan import BYTES_PER_PIXEL, Listing
from worker.settings import Settings
from worker.sizing import expected_pixels, scale_for
from worker.storage import Storage
from worker.summary import summarise
from worker.uris import open_storage

PAGE = 1000
"""Images that are looked at together: one page of an S3 listing."""
ASKERS = 16
"""Threads that ask the destination what is there."""
SAMPLE = 24
"""Images whose headers are read."""
SAMPLE_BYTES = 8 << 20
"""A larger file is not read for its header: on S3 that would be a download."""
EXAMPLES = 5
"""Refusals that are told with their message."""
UPSCALED = 0.85
"""Bytes a pixel of an output, in shares of its source's in the same format: larger pictures are smoother. Measured on
examples/photos at x2; it depends on the quality that the sources were saved with, and so is a guess elsewhere."""
JOBS = 5
"""Earlier jobs whose median speed is taken."""
LOOKED_AT = 50
"""Most jobs among which those are looked for."""


@dataclass
class Forecast:
    """What is to be expected of a job."""

    total: int = 0
    """Images in the listing."""
    todo: int = 0
    skipped: int = 0
    """Outputs that are there, by the rules of --overwrite."""
    refused: Counter[str] = field(default_factory=Counter)
    """Code -> images that would fail before any work."""
    examples: list[tuple[str, str, str]] = field(default_factory=list)
    """(key, code, message) of some of them, and of those in the sample."""
    ignored: int = 0
    """Other files."""
    input_bytes: int = 0
    """Of the images to do, as all that follows."""
    input_pixels: float = 0.0
    output_pixels: float = 0.0
    output_bytes: float = 0.0
    sampled: int = 0
    """Images whose headers were read for the estimates."""
    sample_large: int = 0
    """Of the sample, those that would not become larger, and are skipped."""
    sample_refused: Counter[str] = field(default_factory=Counter)
    """Code -> images of the sample that would fail."""
    speed: float | None = None
    """Output megapixels/s of earlier jobs."""
    speed_from: str = ""
    """Which jobs, or why it is not known."""

    @property
    def seconds(self) -> float | None:
        """Time that the work would take at that speed."""
        return self.output_pixels / 1e6 / self.speed if self.speed else None


def forecast(
    job: Job,
    settings: Settings,
    ledger: Ledger | None,
    on_look: Callable[[int], None] = lambda seen: None,
    *,
    named: Named | None = None,
) -> Forecast:
    """Look at all that a job would meet.

    Args:
        ledger: where jobs of the same workers are known; None where the job would have workers of its own.
        on_look: called with the number of images looked at, now and then.
        named: the files that the user has named.
    """
    found = Forecast()
    source = open_storage(job.source, settings)
    sample: list[Image] = []
    sizes: Counter[str] = Counter()  # format that a name promises -> bytes of images to do
    counts: Counter[str] = Counter()  # and their number
    dice = random.Random(0)  # noqa: S311  # the same sample each time
    for images in _pages(job, settings, found, named):
        for image in _todo(job, images, settings, found):
            found.todo += 1
            sizes[_promised(image)] += image.size_bytes
            counts[_promised(image)] += 1
            place = len(sample) if len(sample) < SAMPLE else dice.randrange(found.todo)
            sample[place : place + 1] = [image] if place < SAMPLE else sample[place : place + 1]
        on_look(found.total)
    found.input_bytes = sizes.total()
    _estimate(found, job, sizes, counts, _measured(found, job, sample, source, settings))
    _set_speed(found, job, settings, ledger)
    return found


def _pages(job: Job, settings: Settings, found: Forecast, named: Named | None) -> Iterable[tuple[Image, ...]]:
    listing = Listing(job, dataclasses.replace(settings, chunk_images=PAGE, chunk_megapixels=10**9), "cpu", "", named)
    while True:
        part = listing.take()
        found.total += len(part.images)
        found.ignored += part.ignored
        yield part.images
        if part.last:
            return


def _todo(job: Job, images: Iterable[Image], settings: Settings, found: Forecast) -> list[Image]:
    """Those that would be worked on; the others are counted."""
    target = open_storage(job.destination, settings)
    plain = [image for image in images if not _refuse(found, image.key, image.problem)]
    there = _there(job, plain, target)
    found.skipped += sum(there)
    limit = file_bytes(settings)
    left = [image for image, skipped in zip(plain, there, strict=True) if not skipped]
    return [image for image in left if not _refuse(found, image.key, _hopeless(image, limit))]


def _there(job: Job, images: list[Image], target: Storage) -> list[bool]:
    """Whether the output of each need not be made again."""
    try:
        empty = job.options.overwrite == "always" or next(target.entries(), None) is None
    except StorageError:  # a folder or prefix that the job would make; or one of which the job itself will complain
        empty = True
    if empty:
        return [False] * len(images)
    with ThreadPoolExecutor(ASKERS) as askers:
        marks = askers.map(lambda image: target.mark(image.output), images)
        return [job.is_made(image, mark, job.model.sha256) for image, mark in zip(images, marks, strict=True)]


def _hopeless(image: Image, limit: int) -> tuple[str, str] | None:
    """Code and message of a file that would be refused by its size alone."""
    if image.size_bytes > limit:
        return FileTooLarge.code, str(FileTooLarge(image.size_bytes, limit))
    return None if image.size_bytes else (ImageEmpty.code, str(ImageEmpty()))


def _refuse(found: Forecast, key: str, problem: tuple[str, str] | None) -> bool:
    if problem is None:
        return False
    found.refused[problem[0]] += 1
    if len(found.examples) < EXAMPLES:
        found.examples.append((key, *problem))
    return True


class _HeaderRead(Exception):
    """Ends the decoding: no more of the file is wanted."""


def _measured(
    found: Forecast, job: Job, sample: list[Image], source: Storage, settings: Settings
) -> dict[str, tuple[int, int]]:
    """Bytes and pixels of the sample, by the format that the name promises."""
    measured: dict[str, tuple[int, int]] = {}
    for image in sample:
        if image.size_bytes > SAMPLE_BYTES:
            continue
        try:
            header = _header(source.read(image.key, max_bytes=SAMPLE_BYTES), settings)
            found.sample_large += not _check(header, job, settings)
        except (ImageError, StorageError, StorageUnavailable) as exc:
            found.sample_refused[exc.code] += 1
            if len(found.examples) < EXAMPLES:
                found.examples.append((image.key, exc.code, str(exc)))
            continue
        finally:
            found.sampled += 1
        size_bytes, pixels = measured.get(_promised(image), (0, 0))
        measured[_promised(image)] = size_bytes + image.size_bytes, pixels + header.width * header.height
    return measured


def _header(data: bytes, settings: Settings) -> Header:
    headers: list[Header] = []

    def keep(header: Header) -> None:
        headers.append(header)
        raise _HeaderRead

    with suppress(_HeaderRead):
        decode(data, max_pixels=settings.max_pixels, on_header=keep)
    return headers[0]


def _check(header: Header, job: Job, settings: Settings) -> bool:
    """As the pipeline does before any work, as far as a header tells; False if it is large enough already."""
    shape = header.height, header.width
    pixels = np.broadcast_to(np.uint8(0), (*shape, 3))  # takes no memory
    written = output_format(header.format, job.options.format)
    scale = scale_for(job.options, shape)
    if scale is None:
        return False
    check_output(pixels, scaled_size(shape, scale), written, max_pixels=settings.max_output_pixels)
    return True


def _estimate(
    found: Forecast, job: Job, sizes: Counter[str], counts: Counter[str], measured: dict[str, tuple[int, int]]
) -> None:
    for kind, size_bytes in sizes.items():
        bytes_seen, pixels_seen = measured.get(kind, (0, 0))
        a_pixel = bytes_seen / pixels_seen if bytes_seen else BYTES_PER_PIXEL[kind]
        pixels = counts[kind] * expected_pixels(job.options, size_bytes / counts[kind] / a_pixel)
        written = output_format(kind, job.options.format)
        alike = written == kind and job.options.quality is None
        found.input_pixels += size_bytes / a_pixel
        found.output_pixels += pixels
        found.output_bytes += pixels * (a_pixel * UPSCALED if alike else BYTES_PER_PIXEL[written])


def _set_speed(found: Forecast, job: Job, settings: Settings, ledger: Ledger | None) -> None:
    speeds, why = _speeds_of_ledger(job, ledger) if ledger else ([], "")
    if speeds:
        found.speed_from = f"{_jobs(speeds)} of this Redis"
    else:
        speeds = _speeds_at(job, settings)
        found.speed_from = f"{_jobs(speeds)} of this destination" if speeds else why or "no job has been done here yet"
    found.speed = median(speeds) if speeds else None


def _jobs(speeds: list[float]) -> str:
    return "the last job" if len(speeds) == 1 else f"the last {len(speeds)} jobs"


def _speeds_of_ledger(job: Job, ledger: Ledger) -> tuple[list[float], str]:
    speeds: list[float] = []
    try:
        for job_id in ledger.job_ids()[:LOOKED_AT]:
            record = ledger.record(job_id)
            if record.job.options.self_ensemble == job.options.self_ensemble:
                speeds += _speed(summarise(record))
    except (BrokerUnreachable, BrokerRefused) as exc:
        return [], str(exc)
    except (NewerFormat, NotFound):  # a newer client's, or one that expired meanwhile
        pass
    return speeds[:JOBS], "no job has been done with this Redis yet"


def _speeds_at(job: Job, settings: Settings) -> list[float]:
    """Speeds of the last jobs that wrote here, by their own record."""
    speeds: list[float] = []
    try:
        for job_id in reversed(job_ids(job.destination, settings)[-LOOKED_AT:]):
            raw = json.loads(open_storage(f"{job.destination.rstrip('/')}/.vdsr/{job_id}", settings).read("job.json"))
            if raw["options"].get("self_ensemble", False) == job.options.self_ensemble and "ended" in raw:
                speeds += _speed(raw["ended"])
    except (NotFound, StorageError):  # no such place yet, or a job that is just being begun
        pass
    return speeds[:JOBS]


def _speed(summary: dict[str, Any]) -> list[float]:
    """None or one: of a job that has done something to its end."""
    speed = summary["megapixels_per_second"]
    return [speed] if summary["state"] == State.COMPLETED and speed else []


def _promised(image: Image) -> str:
    return IMAGE_SUFFIXES.get("." + image.key.rpartition(".")[2].lower(), "PNG")
