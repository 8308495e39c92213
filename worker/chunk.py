"""How does a worker do a chunk? Lease it, take its images through the pipeline, write the results, commit.

It may run twice, or on two workers at once: the lease's token decides who may record, the results part is created
once, and the commit counts once. Images that an earlier owner finished are not done again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress

from vdsr.device import DeviceError, OutOfMemory
from vdsr.errors import CheckpointError, VdsrError
from worker import health, stopping
from worker.deaths import owner_name
from worker.errors import JobStopped, LeaseLost, NewerFormat, StorageError, TransientError, UsageError, WorkerStopping
from worker.jobs import Image, Job, Model, Outcome, State, too_many_failed
from worker.ledger import Grant, Ledger
from worker.logs import note
from worker.parts import Parts
from worker.pipeline import AHEAD, ImageCrashed, Pipeline, failure
from worker.plan import LOW_WATER
from worker.renewal import Renewal
from worker.runtime import Runtime
from worker.settings import Settings
from worker.uris import open_storage

FAULTS = 3
"""An image that ended its process this often, or met a fault of this program, is given up."""

ATTEMPTS = 6
"""So is one that was begun this often without a result. Nobody tells how an attempt ended when a whole node goes, and
spot nodes do: that blames the image for less."""

FRUITLESS = 10
"""A chunk that was begun this often, with not one image of it done, ends its job: something else is wrong."""


class ChunkStuck(VdsrError):
    """Worker after worker begins a chunk and records nothing."""


AWAY_S = 120
"""How long Redis may be away until the images that were in hand are held for suspects."""


class TooManyFailures(VdsrError):
    """More images failed than the job allows."""


HOPELESS = (CheckpointError, ChunkStuck, DeviceError, StorageError, TooManyFailures, UsageError)
"""Errors outside any image that trying again would not mend: they end the job."""

log = logging.getLogger(__name__)


def take_turn(
    runtime: Runtime, job_id: str, chunk: int, *, at_once: bool, sent: float | None = None
) -> tuple[str, int]:
    """The chunk to do now; a message that is not its job's turn goes back to the queue.

    Args:
        at_once: see `Ledger.turn`.
        sent: Unix time at which the message was queued first, by its sender's clock.
    """
    try:
        due = runtime.ledger.turn(job_id, chunk, at_once=at_once)
        if due != (job_id, chunk):
            runtime.queue.upscale(job_id, chunk, sent=sent)
    except TransientError as exc:  # Redis is away, which the chunk itself will meet, and wait for
        log.warning("cannot ask whose turn it is: %s", exc)
        return job_id, chunk
    return due


def do_chunk(
    runtime: Runtime, job_id: str, chunk: int, *, worker: str | None = None, sent: float | None = None
) -> None:
    """Do what is left of a chunk; nothing if it is done, another's, or its job has ended.

    Args:
        worker: name of this one, for the results.
        sent: Unix time at which the message that brought it was queued, by its sender's clock.

    Raises:
        NewerFormat: it is a newer worker's to do; nothing of it was changed.
    """
    owner = owner_name(worker or "", os.getpid())
    lease = Lease(runtime.ledger, job_id, chunk, runtime.settings.lease_s, owner, runtime.models.notice)
    try:
        _do_leased(runtime, lease, worker, sent)
    except NewerFormat:  # of the job, or of what a newer worker has listed of it; nothing is begun
        _give_back(lease, 0)
        raise


def _do_leased(runtime: Runtime, lease: Lease, worker: str | None, sent: float | None) -> None:
    job_id, chunk = lease.job_id, lease.chunk
    rows: dict[int, Outcome] = {}
    parts: Parts | None = None
    try:
        grant = lease.take()
        if grant is None:
            return
        runtime.meter.leased(None if sent is None else time.time() - sent, again=grant.begun)
        rows.update(grant.rows)
        parts = Parts(grant.job, runtime.settings)
        with lease.kept():
            _work(runtime, lease, grant, parts, rows, worker)
            written = parts.add_results(chunk, _in_order(rows))
    except LeaseLost:
        log.warning("chunk %d of %s was taken over by another worker; leaving it", chunk, job_id)
        _give_back(lease, 0)
        return
    except (OutOfMemory, TransientError) as exc:
        # Memory: others may need the card just now; if it does not pass, the chunk is fruitless. Redis or the registry:
        # the sweeper queues the chunk again in a while.
        log.warning("chunk %d of %s pauses: %s", chunk, job_id, exc)
        _give_back(lease, AWAY_S, blameless=isinstance(exc, TransientError))
        return
    except HOPELESS as exc:
        log.error("job %s fails: %s", job_id, exc)
        runtime.ledger.stop(job_id, State.FAILED, str(exc))
        written = _written_down(parts, chunk, rows)
    except ImageCrashed as crash:
        if lease.release(failed=crash.number, why=repr(crash.__cause__)):
            runtime.queue.upscale(job_id, chunk, again=True)
        raise
    except WorkerStopping:
        log.info("asked to stop: chunk %d of %s goes back with %d images done", chunk, job_id, len(rows))
        with suppress(TransientError):
            lease.release(blameless=True, uncounted=lease.in_hand)
            runtime.queue.upscale(job_id, chunk, again=True)
        stopping.leave()
    except SystemExit:  # the grace time is over, or Celery lost Redis: no image's fault, and no attempt is counted
        if _give_back(lease, 0 if stopping.asked() else AWAY_S, blameless=bool(lease.in_hand)):
            with suppress(TransientError):
                runtime.queue.upscale(job_id, chunk, again=True)
        raise
    with suppress(LeaseLost):
        runtime.queue.member(job_id, lease.commit(written))


def _give_back(lease: Lease, patience_s: float, *, blameless: bool = True) -> bool:
    """Leave a chunk without blame on the images in hand; False if it was not ours any more, or Redis stays away.

    A Redis that is away is waited for: there is nothing else to do, and images that were in hand at three such times
    would be given up as if they had killed their workers.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            ours = lease.release(blameless=blameless, uncounted=lease.in_hand)
            if not ours:
                lease.absolve()
        except TransientError as exc:
            if time.monotonic() > deadline:
                log.warning("chunk %d of %s cannot be given back: %s", lease.chunk, lease.job_id, exc)
                return False
            time.sleep(1)
        else:
            return ours


def _work(
    runtime: Runtime, lease: Lease, grant: Grant, parts: Parts, rows: dict[int, Outcome], worker: str | None
) -> None:
    """Add the outcomes that are missing to `rows`, as far as the job lives."""
    images = parts.manifest(lease.chunk).images
    lease.again = {image.key: image.again for image in images if image.again}
    if grant.drain:
        return
    if grant.fruitless > FRUITLESS:
        raise ChunkStuck(
            f"chunk {lease.chunk} was begun {grant.fruitless} times without a result; the workers' logs tell why"
        )
    try:
        with closing(_outcomes(runtime, lease, grant, images)) as outcomes:
            for ended in outcomes:
                now = round(time.time(), 2)
                found = [(index, dataclasses.replace(row, worker=worker, finished=now)) for index, row in ended]
                rows.update(found)
                with suppress(JobStopped):  # the pipeline learns of it itself, and still hands over what is written
                    lease.record(found)
                runtime.meter.recorded(row for _, row in found)
                for _, row in found:
                    _tell(row)
                if grant.job.options.max_failures and any(row.outcome == "failed" for _, row in found):
                    _check_failures(runtime.ledger, grant.job)
    except ImageCrashed as crash:
        key = images[crash.number].key
        log.error("image %s met a fault of this program: %r", key, crash.__cause__, extra={"image": key})
        raise
    except JobStopped:
        log.info("job %s has ended; chunk %d stops after %d images", lease.job_id, lease.chunk, len(rows))


def _tell(row: Outcome) -> None:
    """A line for a failure; with --log-level DEBUG, for every image."""
    about = {"image": row.key}
    if row.outcome == "failed":
        log.info("image %s failed, %s: %s", row.key, row.code, row.message, extra=about)
    else:
        log.debug("image %s is %s", row.key, row.outcome, extra=about)


def _check_failures(ledger: Ledger, job: Job) -> None:
    """
    Raises:
        TooManyFailures: of the whole job, by all workers.
    """
    record = ledger.record(job.id)
    failed, listed = int(record.counters.get("failed", 0)), int(record.counters.get("images", 0))
    if too_many_failed(job.options, failed, listed, complete=record.listed):
        raise TooManyFailures(
            f"{failed:,} of {listed:,} images have failed, over --max-failures {job.options.max_failures}; "
            f"'vdsr status {job.id} --failed' lists them, and the same command does the rest once they are mended"
        )


def _written_down(parts: Parts | None, chunk: int, rows: dict[int, Outcome]) -> list[Outcome]:
    """What a chunk got done before its job failed, at the destination if that can be; counted in any case."""
    done = _in_order(rows)
    if parts is not None and done:
        try:
            return parts.add_results(chunk, done)
        except (StorageError, TransientError) as exc:  # the ledger has the counts, and the job must end
            log.error("cannot write down what chunk %d got done: %s", chunk, exc)
    return done


def _in_order(rows: dict[int, Outcome]) -> list[Outcome]:
    return [rows[index] for index in sorted(rows)]


class Lease:
    """Ownership of one chunk, renewed by a thread of its own while it is kept."""

    def __init__(
        self,
        ledger: Ledger,
        job_id: str,
        chunk: int,
        seconds: float,
        owner: str,
        on_promotion: Callable[[int], None] = lambda serial: None,
    ) -> None:
        """
        Args:
            owner: this process, by `worker.deaths.owner_name`.
            on_promotion: called at each beat with the serial number of the last promotion.
        """
        self.ledger, self.job_id, self.chunk, self.seconds = ledger, job_id, chunk, seconds
        self.on_promotion = on_promotion
        self.token = f"{owner}:{secrets.token_hex(8)}"
        self.again: dict[str, str] = {}
        """In a retry, the codes of the failures before, by key."""
        self.in_hand: set[int] = set()
        """Images that are begun and not recorded."""
        self._renewal = Renewal(self._renew, seconds / 6)  # often: this is also how a cancel is noticed

    def take(self) -> Grant | None:
        """Own the chunk, if it is free."""
        return self.ledger.lease(self.job_id, self.chunk, self.token, self.seconds)

    def kept(self) -> AbstractContextManager[None]:
        """Renew it for as long as the block runs."""
        return self._renewal.kept()

    def check(self) -> None:
        """Raise what the renewing thread has learnt: JobStopped or LeaseLost."""
        health.progress()
        self._renewal.check()

    def start(self, indices: Sequence[int]) -> None:
        """Images are about to be touched."""
        health.progress()
        self._beat(start=indices)
        self.in_hand.update(indices)

    def record(self, rows: Sequence[tuple[int, Outcome]]) -> None:
        """Images are done."""
        health.progress()
        self._beat(done=rows)
        self.in_hand.difference_update(index for index, _ in rows)

    def commit(self, rows: list[Outcome]) -> str:
        """The chunk is done; what to queue next."""
        return self.ledger.commit(self.job_id, self.chunk, self.token, rows, low_water=LOW_WATER, again=self.again)

    def release(
        self, *, failed: int | None = None, why: str = "", blameless: bool = False, uncounted: Iterable[int] = ()
    ) -> bool:
        """Give the chunk back; False if it was not ours any more."""
        return self.ledger.release(
            self.job_id, self.chunk, self.token, failed=failed, why=why, blameless=blameless, uncounted=uncounted
        )

    def absolve(self) -> None:
        """Take back the attempts at what is in hand, though the lease has run out meanwhile."""
        self.ledger.absolve(self.job_id, self.chunk, self.in_hand)

    def _beat(self, *, done: Sequence[tuple[int, Outcome]] = (), start: Sequence[int] = ()) -> None:
        self.on_promotion(
            self.ledger.beat(
                self.job_id, self.chunk, self.token, self.seconds, done=done, again=self.again, start=start
            )
        )

    def _renew(self) -> None:
        try:
            self._beat()
        except TransientError as exc:
            log.warning("cannot renew the lease of chunk %d: %s", self.chunk, exc)


def _outcomes(
    runtime: Runtime, lease: Lease, grant: Grant, images: Sequence[Image]
) -> Generator[list[tuple[int, Outcome]]]:
    """Outcomes of the images that have none yet."""
    hopeless: list[tuple[int, Outcome]] = []
    todo: list[tuple[int, Image]] = []
    suspects: list[tuple[int, Image]] = []
    for index, image in enumerate(images):
        attempts = grant.attempts.get(index, 0)
        if index in grant.rows:
            continue
        if image.problem:
            hopeless.append((index, failure(image, *image.problem)))
        elif attempts >= ATTEMPTS or grant.faults.get(index, 0) >= FAULTS:
            why = grant.reasons.get(index, "its worker went without a word each time")
            message = f"given up after {attempts} attempts without a result: {why}"
            hopeless.append((index, failure(image, "crashed", message)))
        else:
            (suspects if attempts else todo).append((index, image))
    if hopeless:
        yield hopeless
    if not todo and not suspects:
        return
    line = _pipeline(runtime, grant)

    def on_next() -> None:
        stopping.check()
        runtime.meter.computed(line.upscaler.engine)

    # An image that was in hand when a worker died may be what killed it: such images go last and one by one,
    # so that the next death has one suspect only.
    for batch, ahead in ((todo, AHEAD), (suspects, 0)):
        try:
            yield from line.run(batch, ahead=ahead, on_start=lease.start, on_tile=lease.check, on_next=on_next)
        finally:
            runtime.meter.computed(line.upscaler.engine)


def _pipeline(runtime: Runtime, grant: Grant) -> Pipeline:
    settings: Settings = runtime.settings
    job = grant.job
    reference = job.options.reference
    upscaler = runtime.models.for_job(job, grant.promoted)
    upscaler.self_ensemble = job.options.self_ensemble
    note(model=upscaler.identity.version)
    runtime.meter.serves(Model(upscaler.identity.version, upscaler.identity.sha256))
    return Pipeline(
        job,
        upscaler,
        settings,
        source=open_storage(job.source, settings),
        target=open_storage(job.destination, settings),
        reference=open_storage(reference, settings) if reference else None,
    )
