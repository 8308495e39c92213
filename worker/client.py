"""What can be asked of the service? Submit, look, wait, cancel, retry. Needs Redis and storage, never torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.app import QUEUE, Queue
from worker.errors import BrokerUnreachable, NotFound, NothingMatched, StorageError, StorageUnavailable, UsageError
from worker.filelist import Named
from worker.fleet import Fleet
from worker.formats import IMAGE_SUFFIXES, REQUESTS, output_format
from worker.jobs import Image, Job, Options, Outcome, State, new_job_id
from worker.ledger import FINISH, Ledger, Record
from worker.models import choose, is_stand_in
from worker.names import check_template, output_key
from worker.parts import Parts, failed_rows, job_ids
from worker.plan import FOLDER_UNREADABLE, Listing
from worker.recovery import again, unfinished
from worker.settings import Settings
from worker.storage import fold
from worker.uris import Place, open_storage, resolve

LOOK_S = 0.4
PREVIEW = 1000
"""Images that are looked at before a job is queued, for collisions: one page of an S3 listing."""


@dataclass(frozen=True)
class Client:
    """A user's side of the service."""

    settings: Settings
    ledger: Ledger
    fleet: Fleet
    queue: Queue

    @classmethod
    def connect(cls, settings: Settings) -> Client:
        """A client whose Redis answers.

        Raises:
            BrokerUnreachable: it does not.
        """
        client = cls(settings, Ledger(settings.redis_url), Fleet(settings.redis_url), Queue(settings))
        client.fleet.ping()
        return client

    def workers(self) -> list[str]:
        """Workers that take images, seen lately."""
        return self.fleet.workers(QUEUE)

    def unseen_s(self) -> float:
        """Seconds since one of them was last seen: 0 if lately, infinity if no trace of one is left."""
        return self.fleet.unseen_s(QUEUE)

    def submit(self, job: Job, named: Named | None = None) -> str:
        """Record a job at its destination and in the ledger, and have it planned.

        Args:
            named: the files that the user has named, if the job was drafted with them.

        Returns:
            Its id, or that of an open job which does the same already.

        Raises:
            DestinationTaken: an open job writes something else there.
        """
        job_id = self.ledger.create(job)
        if job_id == job.id:
            try:
                if named:
                    named.write(job, self.settings)
                Parts(job, self.settings).write_job()
            except BaseException:
                self.ledger.forget(job)
                raise
            self.queue.plan(job.id)
        return job_id

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_look: Callable[[Record], None] = lambda record: None,
        before_look: Callable[[], None] = lambda: None,
        patience_s: float = 0,
    ) -> Record | None:
        """The record of a job once it has ended; None if it has not within the time.

        Args:
            on_look: called with the record each time it is read, about twice a second.
            before_look: called before that.
            patience_s: how long Redis may be away.
        """
        answered = time.monotonic()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            before_look()
            try:
                record = self.ledger.record(job_id)
            except BrokerUnreachable:
                if time.monotonic() - answered > patience_s:
                    raise
                time.sleep(LOOK_S)
                continue
            answered = time.monotonic()
            on_look(record)
            if record.state.ended:
                return record
            if deadline is not None and time.monotonic() >= deadline:
                return None
            time.sleep(LOOK_S)

    def cancel(self, job_id: str) -> State:
        """Stop a job within the image in hand; the state it was in before."""
        before = self.ledger.stop(job_id, State.CANCELLED)
        if not before.ended:
            self.queue.member(job_id, FINISH)
        return before

    def failed(self, job_id: str) -> list[Outcome]:
        """The images whose last outcome is a failure, from the results at the destination."""
        return list(failed_rows(Parts(self.ledger.record(job_id).job, self.settings)).values())

    def retry(self, job_id: str) -> int:
        """Do the failed images of a completed job again, as more chunks of it; how many there are.

        Raises:
            UsageError: the job has not completed, or changed meanwhile.
        """
        record = self.ledger.record(job_id)
        if record.state is not State.COMPLETED:
            raise UsageError(f"job {job_id} is {record.state.value}; only a completed job can be retried")
        parts = Parts(record.job, self.settings)
        waiting = [_again(row) for row in failed_rows(parts).values()]
        if not waiting:
            return 0
        end = again(parts, record.planned, waiting, cursor=record.cursor, listed=True)
        parts.write_job()
        if not self.ledger.reopen(record, end - record.planned):
            raise UsageError(f"job {job_id} changed meanwhile; look at 'vdsr status {job_id}' and retry again")
        for chunk in range(record.planned, end):
            self.queue.upscale(job_id, chunk)
        return len(waiting)

    def resume(self, destination: str, job_id: str | None = None) -> list[str]:
        """Go on with jobs of which Redis knows nothing any more, from their records at the destination.

        Args:
            job_id: only this one; it may also have failed, or been cancelled.

        Returns:
            Their ids.

        Raises:
            NotFound: there is no such job, or none that could go on.
            DestinationTaken: an open job writes there; it may be the same one.
        """
        found = [job_id] if job_id else job_ids(destination, self.settings)
        resumed, ended = [], {}
        for each in found:
            parts, state = Parts.at(destination, each, self.settings)
            if state is State.COMPLETED or (state and not job_id):
                ended[each] = state.value
            elif job_id or not self.ledger.is_known(each):
                self._resume(parts)
                resumed.append(each)
        if not resumed:
            last = ", ".join(f"{name} ({state})" for name, state in list(ended.items())[-3:])
            open_ones = " others are open;" if len(ended) < len(found) else ""
            raise NotFound(
                f"no job at {destination} was forgotten;{open_ones} ended: {last or 'none'}; --job goes on with one "
                "that failed or was cancelled, and 'vdsr retry' does failed images again"
            )
        return resumed

    def _resume(self, parts: Parts) -> None:
        """Make the ledger know what the record of a job says, and queue what is left."""
        rest, job_id = unfinished(parts), parts.job.id
        self.ledger.restore(parts.job, rest)
        parts.write_job()  # without an end
        for chunk in rest.left:
            self.queue.upscale(job_id, chunk)
        if not rest.listed:
            self.queue.plan(job_id)
        elif not rest.left:
            self.queue.member(job_id, FINISH)


def _again(row: Outcome) -> Image:
    """A failed image, to be done again; what failed by its name alone would fail, or do harm, again."""
    by_name = row.code in ("name_collision", "unsafe_name", FOLDER_UNREADABLE)
    problem = (row.code or "", row.message or "") if by_name else None
    return Image(row.key, row.size_bytes, "", row.output, problem, again=row.code)


def draft(
    source: str,
    destination: str | None,
    options: Options,
    settings: Settings,
    *,
    model: str | None = None,
    named: Named | None = None,
) -> Job:
    """The job that a user's words mean, checked against what lies at the source.

    Args:
        named: the only files that are wanted, by `worker.filelist.read_names`.
        model: see worker.models.choose.

    Raises:
        NotFound: no such model.
        UsageError: source and destination cannot be used together, or inputs want the same output.
        NothingMatched: there is no image.
    """
    if options.name_template:
        check_template(options.name_template, sized=options.sized or options.max_megapixels is not None)
    place = resolve(source, settings)
    try:
        return _draft(place, destination, options, settings, model, named)
    except (StorageError, StorageUnavailable) as exc:
        if place.scheme == "file" or source.startswith("s3://"):
            raise
        raise UsageError(f"{source!r} does not exist here, and was read as {place.uri}: {exc}") from exc


def _draft(
    place: Place,
    destination: str | None,
    options: Options,
    settings: Settings,
    model: str | None,
    named: Named | None,
) -> Job:
    single = _is_single(place, settings)
    if single and named:
        raise UsageError(f"{place.uri} is one file; --files-from names files of a folder or prefix")
    origin = place.parent if single else place
    reference, reference_key = _reference(options.reference, single, settings)
    options = dataclasses.replace(options, reference=reference, reference_key=reference_key)
    only = None
    if single:
        target, name, options = _single_target(place, destination, options, settings)
        only = (place.name, name)
    else:
        target = _folder_target(place, destination, options, settings)
        if f"{origin.uri}/".startswith(f"{target.uri}/"):
            raise UsageError(
                f"{target.uri} is the source or holds it: originals could be replaced; give a destination beside it"
            )
        if f"{target.uri}/".startswith(f"{origin.uri}/") and _holds_originals(target, settings):
            raise UsageError(
                f"{target.uri} lies inside the source and holds files that no job made: originals could be replaced; "
                "give a destination beside the source, or an empty one"
            )
    chosen, follow = choose(model, settings)
    if is_stand_in(chosen) and _holds_anything(target, only, settings):
        raise UsageError(
            f"{chosen.version} draws stripes to measure the fleet, and {target.uri} holds files that it could replace; "
            "give an empty destination"
        )
    job = Job(
        id=new_job_id(),
        source=origin.uri,
        destination=target.uri,
        options=options,
        model=chosen,
        only=only,
        named=named.facts if named else None,
        follow=follow,
        created=time.time(),
    )
    _preview(job, place, settings, named)
    return job


def _is_single(place: Place, settings: Settings) -> bool:
    """Whether a source is one file. ObjectNotFound where a local one is nothing."""
    if place.scheme == "file":
        path = Path(place.path)
        if not path.exists():
            raise UsageError(f"{path} does not exist; check the path, or write s3://bucket/prefix for S3")
        return path.is_file()
    return place.looks_like_image and open_storage(place.parent.uri, settings).exists(place.name)


def _reference(text: str | None, single: bool, settings: Settings) -> tuple[str | None, str | None]:
    """URI of the references, and for a single file the key of its own."""
    if text is None:
        return None, None
    place = resolve(text, settings)
    if _is_single(place, settings):
        if not single:
            raise UsageError(f"the reference {place.uri} is one file, and the source is not; give a folder")
        return place.parent.uri, place.name
    if next(open_storage(place.uri, settings).entries(), None) is None:
        raise UsageError(f"there is nothing at the reference {place.uri}; check the path")
    return place.uri, None


def _holds_originals(target: Place, settings: Settings) -> bool:
    """Whether a destination holds something, and is not that of an earlier job."""
    if target.scheme == "file" and not Path(target.path).exists():
        return False
    used = open_storage(target.uri, settings)
    record = Place(target.scheme, target.bucket, f"{target.path}/.vdsr".lstrip("/" if target.scheme == "s3" else ""))
    if target.scheme == "file":
        earlier = Path(record.path).is_dir()
    else:
        earlier = next(open_storage(record.uri, settings).entries(), None) is not None
    return not earlier and next(used.entries(), None) is not None


def _holds_anything(target: Place, only: tuple[str, str] | None, settings: Settings) -> bool:
    """Whether there is anything at a destination, hidden records apart."""
    storage = open_storage(target.uri, settings)
    if only:
        return storage.exists(only[1])
    if target.scheme == "file" and not Path(target.path).exists():
        return False
    return next(storage.entries(), None) is not None


def _folder_target(place: Place, destination: str | None, options: Options, settings: Settings) -> Place:
    if destination is not None:
        target = resolve(destination, settings, beside=place)
        if target.scheme == "file" and Path(target.path).is_file():
            raise UsageError(f"{target.uri} is a file; give a folder for the outputs of {place.uri}")
        return target
    if not place.name:
        raise UsageError(f"{place.uri} is a whole bucket or disk, and does not name its output; give a destination")
    return place.sibling(f"{place.name}-{options.label}")


def _single_target(
    place: Place, destination: str | None, options: Options, settings: Settings
) -> tuple[Place, str, Options]:
    """The destination's folder, the output's key for one file, and options that fit its suffix."""
    if not place.looks_like_image:
        raise NothingMatched(f"{place.uri} does not end as an image does ({' '.join(IMAGE_SUFFIXES)})")
    name = output_key(place.name, options)
    if destination is None and not options.name_template:
        stem, _, suffix = name.rpartition(".")
        return place.parent, f"{stem}-{options.label}.{suffix}", options
    target = place.parent if destination is None else resolve(destination, settings, beside=place)
    folder = destination is None or (target.scheme == "file" and Path(target.path).is_dir())
    if folder or not target.looks_like_image:
        chosen = (target, name, options)
    elif options.name_template:
        raise UsageError(f"--name-template names the output, and so does {target.uri}; give one of them")
    else:
        chosen = (target.parent, target.name, _fitting(options, place, target))
    if chosen[0].uri == place.parent.uri and chosen[1] == place.name:
        raise UsageError(f"source and destination are both {place.uri}; give another destination")
    return chosen


def _fitting(options: Options, place: Place, target: Place) -> Options:
    """Options that write the format which the destination's name promises."""
    promised = IMAGE_SUFFIXES[PurePosixPath(target.path).suffix.lower()]
    source = IMAGE_SUFFIXES[PurePosixPath(place.path).suffix.lower()]
    if output_format(source, options.format) == promised:
        return options
    if options.format != "same" or promised.lower() not in REQUESTS:
        wanted = output_format(source, options.format)
        raise UsageError(f"{target.uri} does not end as {wanted} does; give another name, or another --format")
    return dataclasses.replace(options, format=promised.lower())


def _preview(job: Job, place: Place, settings: Settings, named: Named | None) -> None:
    """Look at the first page of the source, so that an empty or colliding one fails before anything is queued."""
    wide = dataclasses.replace(settings, chunk_images=PREVIEW, chunk_megapixels=10**9)
    listing = Listing(job, wide, "cpu", "", named)
    part = listing.take()
    while not part.images and not part.last:
        part = listing.take()
    if not part.images:
        seen = f"; {part.ignored} other files were left out" if part.ignored else ""
        raise NothingMatched(f"no image found at {place.uri}{seen}; check the path, --include and --exclude")
    for image in part.images:
        if image.problem and image.problem[0] == "name_collision":
            raise UsageError(image.problem[1])
    _refuse_twins(job, part.images, settings)


def _refuse_twins(job: Job, images: Iterable[Image], settings: Settings) -> None:
    """Outputs whose names differ in case or Unicode form only, for a disk that takes those for one."""
    first: dict[str, Image] = {}
    twins = [(first.setdefault(fold(image.output), image), image) for image in images if not image.problem]
    pair = next(((one, other) for one, other in twins if one is not other), None)
    if pair and open_storage(job.destination, settings).folds_names():
        raise UsageError(
            f"2 inputs map to names that {job.destination} takes for one ({pair[0].key}, {pair[1].key}); rename one of "
            "them, leave it out with --exclude, or give a destination on a disk that tells them apart"
        )
