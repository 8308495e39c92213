"""What happens to one image? fetch, decode, upscale, score, encode, write: one straight line.

`Pipeline.run` does a chunk's images along that line. Reading ahead, and comparing and writing behind, happen on threads
of their own, so that the device does not wait for storage: codecs and sockets release the interpreter lock
(docs/benchmarks.md).
How much is in hand is bounded in bytes (`worker.memory`), and by AHEAD.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vdsr.alpha import is_opaque
from vdsr.device import DeviceError
from vdsr.errors import CheckpointError, FileTooLarge, ImageError, VdsrError
from vdsr.evaluate import Comparison, NotComparable, check_sizes, score_reference
from vdsr.resize import scaled_size
from worker import scoring, tracing
from worker.errors import (
    BadCredentials,
    JobStopped,
    LeaseLost,
    ObjectNotFound,
    PlaceGone,
    StorageError,
    StorageUnavailable,
    WorkerStopping,
)
from worker.formats import IMAGE_SUFFIXES, output_format
from worker.images import Header, Picture, check_output, decode, encode, fitted, left_out
from worker.jobs import Image, Job, Outcome
from worker.memory import Admission, Turn, budget_bytes, file_bytes, needed_bytes
from worker.metadata import reduced
from worker.patience import Patience
from worker.scoring import SelfDegradation
from worker.settings import Settings
from worker.sizing import large_enough, most_scale, scale_for
from worker.storage import Storage
from worker.tracing import NOTHING, Trace

if TYPE_CHECKING:
    from vdsr.engine import Plane
    from vdsr.upscale import SmallPicture, Upscaler

AHEAD = 16
"""Images that may be read ahead of the one being upscaled, and written behind it: enough to hide S3's latency behind
thumbnails. After a death of the worker all that were begun are suspects, which is why it is not more."""
TOGETHER = 8
"""Most small images that go through the network together: the next ones are being read meanwhile."""
LOADERS, STORERS = 4, 4
"""Threads."""
TOGETHER_SAMPLES = 1 << 18
"""Images that become at most so large, in samples, go through the network together where they have one shape. What they
need before it is done where they are loaded, and what is left where they are stored."""

LARGE_ENOUGH = "large_enough"
"""Code of what is skipped because it would not become larger."""
ITS_OWN_FAULT = (ImageError, StorageError, StorageUnavailable)
"""Errors that become an image's outcome; any other is a fault of this program and rises, but for these:"""
NO_IMAGES_FAULT = (JobStopped, LeaseLost, CheckpointError, DeviceError, PlaceGone, BadCredentials)
CHANGED = "it was changed after it was listed; this is what it was when it was read"


class ImageCrashed(VdsrError):
    """A fault of this program, met while it worked on an image; the cause is chained."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"image {self.number} of the chunk met a fault of this program; the traceback above says which"


@dataclass
class Work:
    """An image on its way along the line."""

    image: Image
    seconds: dict[str, float] = field(default_factory=dict)
    picture: Picture | None = None
    """After `load`; None there means that the image is to be skipped. Its pixels go when they are upscaled."""
    turn: Turn | None = None
    """Holds its memory, until it is stored."""
    skipped: str = ""
    """Why it is to be skipped though its output is not there."""
    scale: float = 1.0
    """The factor for it."""
    format: str = ""
    mark: str = ""
    """Of its output: what it is made of, and the job's id."""
    notes: tuple[str, ...] = ()
    """Of `upscale`, beside those of the picture."""
    small: SmallPicture | None = None
    """After `load`, of a small picture, which shares its passes of the network with others."""
    degraded: SelfDegradation | None = None
    """So too, if it is scored by that."""
    sharpened: Plane | None = None
    restored: Plane | None = None
    """After `upscale`: what the network made of these two."""
    pixels: NDArray[Any] | None = None
    """After `upscale`, of any other."""
    psnr: dict[str, Any] | None = None
    trace: Trace = NOTHING

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        try:
            with self.trace.stage(name):
                yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - started, 4)


Loading = tuple[int, Image, Future[Work]]
Storing = tuple[int, Image, Future[Outcome]]


class Pipeline:
    """The line for the images of one job."""

    def __init__(
        self,
        job: Job,
        upscaler: Upscaler,
        settings: Settings,
        *,
        source: Storage,
        target: Storage,
        reference: Storage | None,
    ) -> None:
        self.job, self.upscaler, self.settings = job, upscaler, settings
        self.source, self.target, self.reference = source, target, reference
        self.looking, self.reading, self.writing = Patience(), Patience(), Patience()
        self._span = tracing.here()
        self._scoring = Lock()
        """One at a time: nobody reckons with the memory of references' files, and of bands in float, several times."""

    def run(
        self,
        images: Sequence[tuple[int, Image]],
        *,
        ahead: int = AHEAD,
        on_start: Callable[[list[int]], None],
        on_tile: Callable[[], None],
        on_next: Callable[[], None] = lambda: None,
    ) -> Iterator[list[tuple[int, Outcome]]]:
        """Work on numbered images; their outcomes in order, as they are written.

        Args:
            ahead: images to read ahead; 0 has one image in hand at a time.
            on_start: called with images' numbers before anything touches them.
            on_tile: called between tiles, and while a storage is waited for; what it raises ends the run.
            on_next: called between images; what it raises ends the run behind the image in hand.
        """
        self._span = tracing.here()
        waits = self.looking, self.reading, self.writing = Patience(on_tile), Patience(on_tile), Patience(on_tile)
        admission, files = Admission(budget_bytes(self.settings)), Admission(file_bytes(self.settings))
        with ThreadPoolExecutor(LOADERS, "load") as loaders, ThreadPoolExecutor(STORERS, "store") as storers:
            loading: deque[Loading] = deque()
            storing: deque[Storing] = deque()
            waiting = deque(images)
            try:
                while waiting or loading:
                    on_next()
                    if fresh := [waiting.popleft() for _ in range(min(len(waiting), ahead + 1 - len(loading)))]:
                        on_start([number for number, _ in fresh])
                    for number, image in fresh:
                        load = loaders.submit(self.load, image, admission.draw(), files.draw())
                        loading.append((number, image, load))
                    storing.extend(self._upscaled(_alike(loading), storers, on_tile))
                    if rows := _stored(storing, ahead):
                        yield rows
                while storing:
                    yield _stored(storing, len(storing) - 1)
            except (JobStopped, PlaceGone, BadCredentials, WorkerStopping, SystemExit) as end:
                yield from self._begun(storing, end)
                raise
            finally:
                admission.close()
                files.close()
                for wait in waits:
                    wait.close()
                for _, _, load in loading:
                    load.cancel()
                for _, _, store in storing:
                    store.cancel()

    def _upscaled(
        self, loaded: Sequence[Loading], storers: ThreadPoolExecutor, on_tile: Callable[[], None]
    ) -> Iterator[Storing]:
        """Take loaded images through the device, and hand them to a writing thread."""
        if _shapes(loaded[0][2]):
            with _blamed(loaded[0][0]):  # suspects are tried alone, and so it is cleared
                self._sharpen_together([load.result() for _, _, load in loaded], on_tile)
        for number, image, load in loaded:
            with _blamed(number):
                store = self._storing(image, load, storers, on_tile)
            yield number, image, store

    def _begun(self, storing: deque[Storing], end: BaseException) -> Iterator[list[tuple[int, Outcome]]]:
        """What is on its way to storage already will be there, and gets its outcome."""
        if not isinstance(end, WorkerStopping):  # which alone leaves time to wait for a storage
            self.reading.close()  # of references
            self.writing.close()
        while storing:
            rows = _stored(storing, len(storing) - 1)
            if isinstance(end, SystemExit):  # what could not be written is done again, by others
                rows = [(number, row) for number, row in rows if row.code != StorageUnavailable.code]
            yield rows

    def load(self, image: Image, turn: Turn, file: Turn) -> Work:
        """Fetch and decode, once there is memory for all that follows; refuse what could not be written afterwards.

        Args:
            turn: for the picture, given back when it is stored.
            file: for its bytes, given back when it is decoded.
        """
        options = self.job.options
        work = Work(image, turn=turn, trace=tracing.image(image.key, self.upscaler.identity.version, self._span))
        try:
            if options.overwrite != "always" and self._is_there(image):
                turn.leave()
                work.trace.end("skipped")
                return work
            data, version = self._fetch(work, file)
            work.picture = self._decode(work, data, turn)
            del data
            made_of = self.job.made_of(image.key, version, self.upscaler.identity.sha256)
            work.mark = f"{made_of} {self.job.id}"
            if image.version and version != image.version:
                work.picture = replace(work.picture, notes=(*work.picture.notes, CHANGED))
            work.format = output_format(work.picture.format, options.format)
            work.picture = fitted(work.picture, work.format)
            pixels = work.picture.pixels
            size = pixels.shape[0], pixels.shape[1]
            scale = scale_for(options, size)
            if scale is None:
                work.picture, work.skipped = None, large_enough(options, size)
                turn.leave()
                work.trace.end("skipped")
                return work
            work.scale = scale
            extras = reduced(work.picture.extras, options.metadata)
            notes = (*work.picture.notes, *left_out(pixels, extras, work.format))
            work.picture = replace(work.picture, extras=extras, notes=notes)
            check_output(pixels, scaled_size(size, scale), work.format, max_pixels=self.settings.max_output_pixels)
            if pixels.size * scale**2 <= TOGETHER_SAMPLES and is_opaque(pixels):
                self._interpolate(work, pixels)
        except BaseException as exc:
            turn.leave()
            work.trace.end("failed", exc)
            raise
        finally:
            file.leave()
        return work

    def upscale(self, work: Work, on_tile: Callable[[], None]) -> None:
        """Bicubic and network, also for the picture's own PSNR: what needs the device, and nothing else."""
        assert work.picture is not None
        with self._computing([work]):
            with work.stage("upscale"):
                work.pixels = self.upscaler.upscale(work.picture.pixels, work.scale, on_tile=on_tile)
            if self._degrades:
                with work.stage("score"):
                    degraded = SelfDegradation(work.picture.pixels, work.scale)
                    restored = None if degraded.y is None else self.upscaler.sharpen(degraded.y, on_tile=on_tile)
                    work.psnr = degraded.figures(restored)

    def store(self, work: Work) -> Outcome:
        """Compare with the source and the reference, encode and write; the finished outcome."""
        assert work.picture is not None
        assert work.turn is not None
        try:
            if work.small is not None and work.sharpened is not None:
                with work.stage("upscale"):
                    work.pixels = work.small.finish(work.sharpened)
                work.small = work.sharpened = None  # their memory, while it is encoded and written
            assert work.pixels is not None
            height, width = work.pixels.shape[:2]
            if self.job.options.score:
                with self._scoring, work.stage("score"):
                    if work.degraded is not None:
                        work.psnr = work.degraded.figures(work.restored)
                        work.degraded = work.restored = None
                    figures = work.psnr or self._score_reference(work)
                    consistency = scoring.consistency(work.pixels, work.picture.pixels, work.scale)
                    work.psnr = {**figures, "lr_consistency": consistency}
            work.picture = replace(work.picture, pixels=work.pixels[:0].copy())
            with work.stage("encode"):
                data = encode(work.pixels, work.format, work.picture.extras, quality=self.job.options.quality)
            work.pixels = None
            with work.stage("write"):
                self.writing(self.target.write, work.image.output, data, mark=work.mark)
            work.trace.end("done")
        except BaseException as exc:
            work.trace.end("failed", exc)
            raise
        finally:
            work.turn.leave()
        return Outcome(
            key=work.image.key,
            output=work.image.output,
            outcome="done",
            size_bytes=work.image.size_bytes,
            psnr=work.psnr,
            model=self.upscaler.identity.sha256,
            width=width,
            height=height,
            seconds=work.seconds,
            notes=work.picture.notes + work.notes,
        )

    @property
    def _degrades(self) -> bool:
        """Whether images are scored by what becomes of them if they are shrunk first."""
        return self.job.options.score and self.reference is None

    def _is_there(self, image: Image) -> bool:
        """Whether the output is there already, and need not be made again."""
        mark = self.looking(self.target.mark, image.output)
        return self.job.is_made(image, mark, self.upscaler.identity.sha256)

    def _fetch(self, work: Work, file: Turn) -> tuple[bytes, str]:
        """The file and its version."""
        limit = file_bytes(self.settings)
        if work.image.size_bytes > limit:
            raise FileTooLarge(work.image.size_bytes, limit)
        with work.stage("wait"):
            file.enter(work.image.size_bytes)
        with work.stage("fetch"):
            return self.reading(self.source.read_version, work.image.key, max_bytes=limit)  # it may have grown

    def _decode(self, work: Work, data: bytes, turn: Turn) -> Picture:
        options = self.job.options

        def admit(header: Header) -> None:
            image_format = output_format(header.format, options.format)
            scale = most_scale(options, (header.height, header.width))
            reference = options.score and self.reference is not None
            need = needed_bytes(header, scale, image_format, reference=reference)
            with work.stage("wait"):
                turn.enter(need)

        waited = work.seconds["wait"]
        with work.stage("decode"):
            picture = decode(data, max_pixels=self.settings.max_pixels, on_header=admit)
        work.seconds["decode"] = round(work.seconds["decode"] - (work.seconds["wait"] - waited), 4)
        return picture

    def _interpolate(self, work: Work, pixels: NDArray[Any]) -> None:
        """All that a small picture needs before the network."""
        from vdsr.upscale import SmallPicture  # here: Celery's own process loads this module, and no torch

        with work.stage("upscale"):
            work.small = SmallPicture(pixels, work.scale)
        if self._degrades:
            with work.stage("score"):
                work.degraded = SelfDegradation(pixels, work.scale)

    def _sharpen_together(self, works: Sequence[Work], on_tile: Callable[[], None]) -> None:
        """Small pictures of one size, in one pass of the network; each is told its share of the time."""
        with self._computing(works):
            with _shared(works, "upscale"):
                planes = [work.small.y for work in works if work.small]
                for work, plane in zip(works, self._sharpened(planes, on_tile), strict=True):
                    work.sharpened = plane
            if planes := [work.degraded.y for work in works if work.degraded and work.degraded.y is not None]:
                with _shared(works, "score"):
                    for work, plane in zip(works, self._sharpened(planes, on_tile), strict=True):
                        work.restored = plane

    def _sharpened(self, planes: Sequence[Plane], on_tile: Callable[[], None]) -> NDArray[np.float32]:
        return self.upscaler.sharpen_alike(np.stack(planes), on_tile=on_tile)

    @contextmanager
    def _computing(self, works: Sequence[Work]) -> Iterator[None]:
        """Tell each its share of the network's time, and what was computed again."""
        before, redone = self.upscaler.network_s, self.upscaler.redone
        yield
        for work in works:
            work.seconds["network"] = round((self.upscaler.network_s - before) / len(works), 4)
            if again := self.upscaler.redone - redone:
                which = "" if len(works) == 1 else f" of {len(works)} images computed together"  # nobody knows of which
                work.notes += (f"{again} tiles{which} overflowed in bf16 and were computed in fp32",)

    def _storing(
        self, image: Image, load: Future[Work], storers: ThreadPoolExecutor, on_tile: Callable[[], None]
    ) -> Future[Outcome]:
        """One of them; a picture that cannot be done has its outcome already."""
        work = None
        try:
            work = load.result()
            if work.picture is None:
                return _settled(_skipped(image, self.job.options.overwrite, work.skipped))
            if work.small is None:
                self.upscale(work, on_tile)
        except BaseException as exc:
            if work and work.turn:
                work.turn.leave()
            if work:
                work.trace.end("failed", exc)
            if isinstance(exc, ITS_OWN_FAULT) and not isinstance(exc, NO_IMAGES_FAULT):
                exc.__traceback__ = None  # its frames hold the picture
                return _settled(failure(image, exc.code, str(exc)))
            raise
        finally:
            del load  # which holds the exception that holds this frame
        return storers.submit(self.store, work)

    def _score_reference(self, work: Work) -> dict[str, Any]:
        assert work.picture is not None
        assert work.pixels is not None
        source, output = work.picture.pixels, work.pixels

        def score() -> Comparison:
            truth = self._read_reference(work.image.key, output, work.scale)
            return score_reference(output, source, truth, work.scale)

        return scoring.reference(score)

    def _read_reference(self, key: str, output: NDArray[Any], scale: float) -> NDArray[Any]:
        """The true picture: under the same key, or the same name with another image suffix."""
        assert self.reference is not None

        def comparable(header: Header) -> None:  # before its pixels take memory that was reckoned for this output
            size = header.height, header.width
            turned = size[::-1]  # as EXIF may want it
            height, width = output.shape[:2]
            nearest = min((size, turned), key=lambda given: max(abs(given[0] - height), abs(given[1] - width)))
            check_sizes(output, nearest, scale)

        stem, _, own = key.rpartition(".")
        given = self.job.options.reference_key
        for name in [given] if given else [stem + suffix for suffix in (f".{own}", *IMAGE_SUFFIXES)]:
            try:
                data = self.reading(self.reference.read, name, max_bytes=file_bytes(self.settings))
            except ObjectNotFound:
                continue
            except (ImageError, StorageError, StorageUnavailable) as exc:
                raise NotComparable(f"the reference cannot be read: {exc}") from exc
            try:
                return decode(data, max_pixels=self.settings.max_output_pixels, on_header=comparable).pixels
            except ImageError as exc:
                raise NotComparable(f"the reference cannot be decoded: {exc}") from exc
        raise NotComparable(f"there is no reference for {key} at {self.reference.uri}")


@contextmanager
def _shared(works: Sequence[Work], stage: str) -> Iterator[None]:
    """Time a stage that they go through together."""
    began, began_ns = time.perf_counter(), time.time_ns()
    yield
    for work in works:
        work.trace.shared(stage, began_ns, time.time_ns())
        work.seconds[stage] = round(work.seconds.get(stage, 0) + (time.perf_counter() - began) / len(works), 4)


def failure(image: Image, code: str, message: str) -> Outcome:
    """The outcome of an image that cannot be done."""
    return Outcome(image.key, image.output, "failed", image.size_bytes, code=code, message=message)


def _alike(loading: deque[Loading]) -> list[Loading]:
    """Takes the next image; with a small one, those after it that are loaded already and make planes of one shape."""
    taken = [loading.popleft()]
    wanted = _shapes(taken[0][2])
    while wanted and loading and len(taken) < TOGETHER and loading[0][2].done() and _shapes(loading[0][2]) == wanted:
        taken.append(loading.popleft())
    return taken


def _shapes(load: Future[Work]) -> list[tuple[int, ...]]:
    """Of the planes that a small picture gives the network, none of another's; waits until it is loaded."""
    if load.exception() is not None:
        return []
    work = load.result()
    planes = (each.y for each in (work.small, work.degraded) if each)
    return [plane.shape for plane in planes if plane is not None]


def _skipped(image: Image, overwrite: str, large: str) -> Outcome:
    if large:
        return Outcome(image.key, image.output, "skipped", image.size_bytes, code=LARGE_ENOUGH, message=large)
    alike = "" if overwrite == "never" else ", made from the same source with the same settings"
    message = f"{image.output} is there already{alike}; --overwrite always would replace it"
    return Outcome(image.key, image.output, "skipped", image.size_bytes, message=message)


def _stored(storing: deque[Storing], most: int) -> list[tuple[int, Outcome]]:
    """Outcomes of images that are written, waiting until at most `most` are on their way."""
    rows = []
    while storing and (len(storing) > most or storing[0][2].done()):
        rows.append(_outcome(*storing.popleft()))
    return rows


def _outcome(number: int, image: Image, store: Future[Outcome]) -> tuple[int, Outcome]:
    with _blamed(number):
        try:
            return number, store.result()
        except NO_IMAGES_FAULT:
            raise
        except ITS_OWN_FAULT as exc:
            exc.__traceback__ = None  # its frames hold the file
            return number, failure(image, exc.code, str(exc))
        finally:
            del store


@contextmanager
def _blamed(number: int) -> Iterator[None]:
    """Say which image a fault belongs to."""
    try:
        yield
    except NO_IMAGES_FAULT:
        raise
    except Exception as exc:
        raise ImageCrashed(number) from exc


def _settled(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
