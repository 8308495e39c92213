"""How does a worker do a chunk? Lease it, take its images through the pipeline, write the results, commit.

It may run twice, or on two workers at once: the lease's token decides who may record, the results part is created
once, and the commit counts once. Images that an earlier owner finished are not done again.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vdsr.device import DeviceError
from vdsr.errors import CheckpointError
from worker.errors import BrokerUnreachable, JobStopped, LeaseLost, StorageError
from worker.jobs import Image, Job, Outcome, State
from worker.ledger import Grant, Ledger
from worker.parts import Parts
from worker.pipeline import AHEAD, ImageCrashed, Pipeline, failure
from worker.plan import LOW_WATER
from worker.runtime import Runtime
from worker.settings import Settings
from worker.uris import open_storage

ATTEMPTS = 3
"""An image that was begun this often without a result is given up: it kills its worker."""

HOPELESS = (CheckpointError, DeviceError, StorageError)
"""Errors outside any image that trying again would not mend: they end the job."""

log = logging.getLogger(__name__)


def do_chunk(runtime: Runtime, job_id: str, chunk: int) -> None:
    """Do what is left of a chunk; nothing if it is done, another's, or its job has ended."""
    ledger, settings = runtime.ledger, runtime.settings
    lease = Lease(ledger, job_id, chunk, settings.lease_s)
    grant = lease.take()
    if grant is None:
        return
    rows = dict(grant.rows)
    parts = Parts(grant.job, settings)
    try:
        with lease.kept():
            images = dict(enumerate(parts.manifest(chunk).images))
            for index, row in _outcomes(runtime, lease, grant, images):
                rows[index] = row
                with suppress(JobStopped):  # the pipeline learns of it itself, and still hands over what is written
                    lease.record(index, row)
    except LeaseLost:
        log.warning("chunk %d of %s was taken over by another worker; leaving it", chunk, job_id)
        return
    except JobStopped:
        log.info("job %s has ended; chunk %d stops after %d images", job_id, chunk, len(rows))
    except ImageCrashed as crash:
        if ledger.release(job_id, chunk, lease.token, failed=crash.number, why=repr(crash.__cause__)):
            runtime.queue.upscale(job_id, chunk)
        raise
    except HOPELESS as exc:
        ledger.stop(job_id, State.FAILED, str(exc))
        log.error("job %s fails: %s", job_id, exc)
    written = parts.add_results(chunk, [rows[index] for index in sorted(rows)])
    due = ledger.commit(job_id, chunk, lease.token, written, low_water=LOW_WATER)
    runtime.queue.member(job_id, due)


class Lease:
    """Ownership of one chunk, renewed by a thread of its own while it is kept."""

    def __init__(self, ledger: Ledger, job_id: str, chunk: int, seconds: float) -> None:
        self.ledger, self.job_id, self.chunk, self.seconds = ledger, job_id, chunk, seconds
        self.token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._verdict: JobStopped | LeaseLost | None = None

    def take(self) -> Grant | None:
        """Own the chunk, if it is free."""
        return self.ledger.lease(self.job_id, self.chunk, self.token, self.seconds)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew from a thread: one image may take longer than a lease."""
        thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def check(self) -> None:
        """Raise what the renewing thread has learnt: JobStopped or LeaseLost."""
        if self._verdict is not None:
            raise self._verdict

    def start(self, index: int) -> None:
        """An image is about to be touched."""
        self.ledger.beat(self.job_id, self.chunk, self.token, self.seconds, start=index)

    def record(self, index: int, row: Outcome) -> None:
        """An image is done."""
        self.ledger.beat(self.job_id, self.chunk, self.token, self.seconds, done=(index, row))

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / 6):  # often: this is also how a cancel is noticed
            try:
                self.ledger.beat(self.job_id, self.chunk, self.token, self.seconds)
            except (JobStopped, LeaseLost) as exc:
                self._verdict = exc
                return
            except BrokerUnreachable as exc:
                log.warning("cannot renew the lease of chunk %d: %s", self.chunk, exc)


def _outcomes(runtime: Runtime, lease: Lease, grant: Grant, images: dict[int, Image]) -> Iterator[tuple[int, Outcome]]:
    """Outcomes of the images that have none yet."""
    todo: list[tuple[int, Image]] = []
    suspects: list[tuple[int, Image]] = []
    for index, image in images.items():
        attempts = grant.attempts.get(index, 0)
        if index in grant.rows:
            continue
        if image.problem:
            yield index, failure(image, *image.problem)
        elif attempts >= ATTEMPTS:
            why = grant.reasons.get(index, "its worker died each time")
            yield index, failure(image, "crashed", f"given up after {attempts} attempts without a result: {why}")
        else:
            (suspects if attempts else todo).append((index, image))
    if not todo and not suspects:
        return
    line = _pipeline(runtime, grant.job)
    # An image that was in hand when a worker died may be what killed it: such images go last and one by one,
    # so that the next death has one suspect only.
    for batch, ahead in ((todo, AHEAD), (suspects, 0)):
        yield from line.run(batch, ahead=ahead, on_start=lease.start, on_tile=lease.check)


def _pipeline(runtime: Runtime, job: Job) -> Pipeline:
    settings: Settings = runtime.settings
    upscaler = runtime.upscaler
    if upscaler.identity.sha256 != job.model.sha256:
        raise CheckpointError(
            f"the job asks for model {job.model.version} ({job.model.sha256[:12]}), this worker has "
            f"{upscaler.identity.version} ({upscaler.identity.sha256[:12]}); give both the same VDSR_WEIGHTS"
        )
    reference = job.options.reference
    return Pipeline(
        job,
        upscaler,
        settings,
        source=open_storage(job.source, settings),
        target=open_storage(job.destination, settings),
        reference=open_storage(reference, settings) if reference else None,
    )
