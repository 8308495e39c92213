"""Who owns which chunk, and what is done? The only file that knows the job keys of Redis.

Celery's queue may lose or repeat a message; this ledger may not. Every change is one Lua script, atomic and safe to
run twice. All keys of a job share the hash tag {JOB}, and expire KEEP_S after the job has ended.

| key                       | type   | holds                                                                        |
|---------------------------|--------|------------------------------------------------------------------------------|
| vdsr:jobs                 | zset   | job id -> created; cleaned of expired jobs when listed                       |
| vdsr:active               | set    | ids of jobs that the sweeper must look at                                    |
| vdsr:turns                | hash   | open job -> where its next chunk starts; clock: where the last one did       |
| vdsr:destinations         | hash   | where an open job writes, folder or file -> job id                           |
| vdsr:{JOB}:job            | hash   | spec (JSON), state, error, cursor, planned, listed, times, counters (below), |
|                           |        | place (its destination), work (digest of what makes two jobs the same work)  |
| vdsr:{JOB}:done           | bitmap | one bit for each chunk that is committed                                     |
| vdsr:{JOB}:open           | zset   | what is queued or being done -> deadline: chunk numbers, "plan", "finish"    |
| vdsr:{JOB}:lease          | hash   | chunk -> token of the process that owns it: WORKER:PID: and a random number  |
| vdsr:{JOB}:progress:CHUNK | hash   | of an open chunk: row:i -> outcome, try:i -> attempts, fault:i -> those that |
|                           |        | are known to have ended in its process' death or an error of this program,   |
|                           |        | why:i -> how the last of these did, hand -> what its owner has begun,        |
|                           |        | leases -> how often it was leased since an image of it was last recorded     |
| vdsr:{JOB}:count:CHUNK    | hash   | of an open chunk: counters                                                   |

Counters, of a chunk while it is open and in the job once it is committed: done, failed, skipped (images),
done_bytes (of their inputs), made_bytes (of the inputs of those that are done), pixels (of outputs), fail:CODE, and for
PSNR psnr_n, psnr_exact, psnr_none, psnr_bicubic_sum, psnr_vdsr_sum. Planning adds images, ignored and bytes to the job.

Times are Redis' own: workers' clocks may differ.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker import scripts
from worker.errors import DestinationTaken, JobStopped, LeaseLost, NewerFormat, NotFound
from worker.fleet import PROMOTED
from worker.jobs import SCHEMA, STRIDES, Job, Outcome, State
from worker.redis_client import RedisClient

KEEP_S = 30 * 24 * 3600
"""How long an ended job stays in the ledger; its report lies at the destination for good."""
QUEUED_S = 15
"""A queued task that nobody has taken for this long is queued again, if no message in the queue names it."""
PATIENCE_S = 600
"""The same whatever the queue holds: a second message does no harm."""
PLAN, FINISH = "plan", "finish"
"""Members of `open` that are no chunks."""
ACTIVE = "vdsr:active"
TURNS = "vdsr:turns"
DESTINATIONS = "vdsr:destinations"


@dataclass(frozen=True)
class Grant:
    """A chunk that is ours until the lease runs out."""

    job: Job
    rows: dict[int, Outcome]
    """Images that an earlier owner finished."""
    attempts: dict[int, int]
    """How often each image was begun before."""
    faults: dict[int, int]
    """How often of these it is known to have ended its process, or to have met a fault of this program."""
    reasons: dict[int, str]
    """How the last of those did."""
    fruitless: int
    """How often it was leased, this time included, since an image of it was last recorded."""
    drain: bool
    """The job has ended: write down what is recorded, and do no more."""
    promoted: int
    """Serial number of the last promotion; 0 if Redis knows of none."""

    @property
    def begun(self) -> bool:
        """Whether somebody had begun the chunk before."""
        return self.fruitless > 1 or bool(self.rows) or bool(self.attempts)


@dataclass(frozen=True)
class Record:
    """Everything the ledger knows about a job."""

    job: Job
    state: State
    error: str | None
    listed: bool
    """Whether the listing has been read to its end, so that `images` is the total."""
    planned: int
    chunks_done: int
    cursor: str
    """Where planning goes on; see worker.plan."""
    counters: dict[str, float]
    """Committed and in progress together; see the module's text."""
    created: float
    finished: float | None
    seconds: float
    """Since the first chunk was taken, without the time between its end and a retry."""
    now: float
    """Redis' time of this record."""

    @property
    def left(self) -> int:
        """Listed images without an outcome."""
        ended = sum(self.counters.get(name, 0) for name in ("done", "failed", "skipped"))
        return max(0, int(self.counters.get("images", 0) - ended))


@dataclass(frozen=True)
class Unfinished:
    """What a job's record at its destination says of it; see worker.recovery."""

    planned: int
    """Chunks that there are."""
    cursor: str
    """Where planning goes on."""
    listed: bool
    done: tuple[int, ...]
    """Chunks with results."""
    left: tuple[int, ...]
    """Chunks without."""
    counters: dict[str, float]


class Ledger:
    """The job ledger of one Redis."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix:// of Redis; nothing is connected yet.
        """
        self._redis = RedisClient(url)

    def create(self, job: Job) -> str:
        """Record a new job, to be planned, unless one that does the same is open; the id of the job that does it.

        Raises:
            DestinationTaken: an open job writes something else to this destination, into it, or to what holds it.
        """
        return self._enter(job, scripts.CREATE, ("open",), ())

    def restore(self, job: Job, rest: Unfinished) -> None:
        """Record a job of which Redis knows nothing, or only that it was stopped, so that it goes on.

        Raises:
            DestinationTaken: as for `create`; or the job is open.
        """
        figures = (rest.planned, rest.cursor, int(rest.listed), json.dumps(rest.counters))
        chunks = (json.dumps(rest.done), json.dumps(rest.left), secrets.token_hex(8))
        self._enter(job, scripts.RESTORE, ("open", "lease", "done"), (*figures, *chunks))

    def forget(self, job: Job) -> None:
        """Take back a job that was created just now, and not yet planned."""
        keys = (*_keys(job.id, "job", "open"), DESTINATIONS)
        self._redis.run(scripts.PRELUDE + scripts.FORGET, keys, job.id, job.places[1].rstrip("/"))
        self._do("zrem", "vdsr:jobs", job.id)
        self._do("srem", ACTIVE, job.id)

    def _enter(self, job: Job, script: str, names: tuple[str, ...], figures: tuple[Any, ...]) -> str:
        first, *others = _keys(job.id, *names)
        keys = (_key(job.id, "job"), first, DESTINATIONS, *others)
        words = (job.to_json(), QUEUED_S, job.id, job.places[1].rstrip("/"), job.work)
        self._do("sadd", ACTIVE, job.id)  # first: a job that nobody sweeps could be forgotten
        answer = self._redis.run(scripts.PRELUDE + script, keys, *words, *figures)
        if answer:
            writer, same = answer
            if same:
                return str(writer)
            raise DestinationTaken(job.places[1], str(writer))
        self._do("sadd", ACTIVE, job.id)  # and after, should a sweeper have seen no such job meanwhile
        self._do("zadd", "vdsr:jobs", {job.id: job.created})
        return job.id

    def plan(self, job_id: str, chunk: int, cursor: str, counters: dict[str, int], *, last: bool) -> int | None:
        """Make a chunk known; the number of open ones, or None if another planner was first or the job has ended."""
        answer = self._run(
            scripts.PLAN, job_id, ("job", "open"), chunk, cursor, json.dumps(counters), int(last), QUEUED_S
        )
        return None if answer == -1 else int(answer)

    def rest(self, job_id: str, low_water: int) -> bool:
        """Pause planning until a commit asks for it; False if so few chunks are open that it must go on."""
        return bool(self._run(scripts.REST, job_id, ("open",), low_water))

    def turn(self, job_id: str, chunk: int, *, at_once: bool = False) -> tuple[str, int]:
        """The chunk that a worker should do who has taken the message of this one: often that of another job.

        Open jobs take turns, chunk by chunk, in proportion to their priorities, however long their queues are.

        Args:
            at_once: this chunk goes first in any case; its job still pays for it.
        """
        words = (job_id, chunk, int(at_once), QUEUED_S, json.dumps(STRIDES), SCHEMA)
        job, number = self._redis.run(scripts.PRELUDE + scripts.TURN, (ACTIVE, TURNS), *words)
        return str(job), int(number)

    def lease(self, job_id: str, chunk: int, token: str, lease_s: float) -> Grant | None:
        """Own a chunk for a while; None if it is done or another's, or if its job has ended with nothing to drain.

        Raises:
            NewerFormat: a newer version of this program submitted the job.
        """
        keys = (*_keys(job_id, "job", "open", "lease", "done", f"progress:{chunk}"), PROMOTED)
        verdict, *answer = self._redis.run(scripts.PRELUDE + scripts.LEASE, keys, chunk, token, lease_s, SCHEMA)
        if verdict == "newer":
            raise NewerFormat(f"job {job_id}", answer[0], SCHEMA)
        if verdict not in ("granted", "drain"):
            return None
        spec, flat, serial = answer
        progress = dict(zip(flat[::2], flat[1::2], strict=True))

        def of(kind: str) -> dict[int, str]:
            return {int(k.partition(":")[2]): v for k, v in progress.items() if k.startswith(kind)}

        return Grant(
            job=Job.from_json(spec),
            rows={i: Outcome.from_json(text) for i, text in of("row:").items()},
            attempts={i: int(text) for i, text in of("try:").items()},
            faults={i: int(text) for i, text in of("fault:").items()},
            reasons=of("why:"),
            fruitless=int(progress.get("leases", 0)),
            drain=verdict == "drain",
            promoted=int(serial),
        )

    def beat(
        self,
        job_id: str,
        chunk: int,
        token: str,
        lease_s: float,
        *,
        done: Sequence[tuple[int, Outcome]] = (),
        again: Mapping[str, str] | None = None,
        start: Sequence[int] = (),
    ) -> int:
        """Renew a lease, recording finished images and the start of others in the same step.

        Args:
            again: see `count`.

        Returns:
            The serial number of the last promotion; 0 if Redis knows of none.

        Raises:
            JobStopped: the job was cancelled or has failed.
            LeaseLost: somebody else owns the chunk by now.
        """
        words = [w for i, row in done for w in (i, row.to_json(), json.dumps(count([row], again)))]
        answer = self._redis.run(
            scripts.PRELUDE + scripts.BEAT,
            (*_keys(job_id, "job", "open", "lease", f"progress:{chunk}", f"count:{chunk}"), PROMOTED),
            chunk,
            token,
            lease_s,
            len(done),
            *words,
            *start,
        )
        if answer == "ended":
            raise JobStopped(job_id)
        if answer == "lost":
            raise LeaseLost(job_id, chunk)
        return int(answer)

    def release(
        self,
        job_id: str,
        chunk: int,
        token: str,
        *,
        failed: int | None = None,
        why: str = "",
        blameless: bool = False,
        uncounted: Iterable[int] = (),
    ) -> bool:
        """Give a chunk back before its lease runs out; False if it was not ours.

        Args:
            failed: the image that broke it, and `why`.
            blameless: this lease does not count as one without a result.
            uncounted: images that were begun and left through no fault of theirs.
        """
        keys = ("open", "lease", f"progress:{chunk}")
        index = "" if failed is None else failed
        words = (index, why, QUEUED_S, int(blameless), *uncounted)
        return bool(self._run(scripts.RELEASE, job_id, keys, chunk, token, *words))

    def died(self, owner: str, why: str) -> list[tuple[str, int]]:
        """Take back at once what a process held that has died, suspecting what it had in hand.

        Args:
            owner: what its tokens begin with; see worker.deaths.
            why: how it died, for whoever reads the failures.

        Returns:
            The chunks to queue, with their jobs.
        """
        found = []
        for job_id in self.active():
            words = (f"{owner}:", why, QUEUED_S, _key(job_id, "progress:"))
            found += [(job_id, int(chunk)) for chunk in self._run(scripts.DIED, job_id, ("open", "lease"), *words)]
        return found

    def absolve(self, job_id: str, chunk: int, uncounted: Iterable[int]) -> None:
        """Images that were begun and left through no fault of theirs, of a chunk that is not ours any more."""
        self._run(scripts.ABSOLVE, job_id, (f"progress:{chunk}",), *uncounted)

    def commit(
        self,
        job_id: str,
        chunk: int,
        token: str,
        rows: Iterable[Outcome],
        *,
        low_water: int,
        again: Mapping[str, str] | None = None,
    ) -> str:
        """Count a chunk's outcomes, once however often it is called.

        Args:
            low_water: planning is asked for when no more chunks than this are open.
            again: see `count`.

        Returns:
            What to queue next: "plan", "finish" or "".

        Raises:
            LeaseLost: somebody else owns the chunk by now.
        """
        keys = ("job", "open", "lease", "done", f"progress:{chunk}", f"count:{chunk}")
        counters = json.dumps(count(rows, again))
        answer = self._run(scripts.COMMIT, job_id, keys, chunk, token, counters, low_water, QUEUED_S)
        if answer == "lost":
            raise LeaseLost(job_id, chunk)
        return "" if answer == "done" else str(answer)

    def stop(self, job_id: str, state: State, error: str = "") -> State:
        """Cancel or fail a job; the state it was in before.

        Raises:
            NotFound: no such job.
        """
        progress = _key(job_id, "progress:")
        before = self._run(scripts.STOP, job_id, ("job", "open", "lease"), state.value, error, progress)
        if before is None:
            raise NotFound(f"no job {job_id!r} is known; see 'vdsr list'")
        return State(before)

    def finish(self, job_id: str) -> State | None:
        """Close a job whose last chunk is committed; None while chunks of it are out."""
        keys = (*_keys(job_id, "job", "open", "lease", "done"), DESTINATIONS, TURNS)
        answer = self._redis.run(scripts.PRELUDE + scripts.FINISH, keys, KEEP_S, job_id)
        if answer == "busy":
            return None
        if answer == "unknown":
            raise NotFound(f"no job {job_id!r} is known")
        return State(answer)

    def sweep(self, job_id: str, *, queue_empty: bool) -> list[str]:
        """Take back what is overdue: chunk numbers (as text), PLAN or FINISH, to be queued again."""
        keys = ("job", "open", "lease")
        found, state, remaining = self._run(scripts.SWEEP, job_id, keys, int(queue_empty), QUEUED_S, PATIENCE_S)
        if state is None or (State(state).ended and not remaining):
            self._do("srem", ACTIVE, job_id)
            now = self._do("hget", _key(job_id, "job"), "state")
            if now is not None and not State(now).ended:  # created or retried just now
                self._do("sadd", ACTIVE, job_id)
        return list(found)

    def lost(self, job_id: str, waiting: Iterable[str]) -> list[str]:
        """Take back chunks whose message died with the worker that had taken it, before it took the lease.

        Args:
            waiting: the members that messages in the queue name, read before this call.
        """
        return list(self._run(scripts.LOST, job_id, ("open", "lease"), QUEUED_S, *waiting))

    def reopen(self, record: Record, chunks: int) -> bool:
        """Add chunks that do failed images again; False if the job changed meanwhile.

        Raises:
            DestinationTaken: another job writes to its destination by now.
        """
        job_id = record.job.id
        keys = (*_keys(job_id, "job", "open", "lease", "done"), DESTINATIONS)
        answer = self._redis.run(scripts.PRELUDE + scripts.REOPEN, keys, record.planned, chunks, QUEUED_S, job_id)
        self._do("sadd", ACTIVE, job_id)
        if answer not in ("", "changed"):
            raise DestinationTaken(record.job.places[1], str(answer))
        return not answer

    def record(self, job_id: str) -> Record:
        """What is known of a job.

        Raises:
            NotFound: no such job.
            NewerFormat: a newer version of this program submitted it.
        """
        raw = self._do("hgetall", _key(job_id, "job"))
        if not raw or "spec" not in raw:
            raise NotFound(f"no job {job_id!r} is known; see 'vdsr list'")
        counters: dict[str, float] = {}
        texts = [raw, *self._in_progress(job_id)]
        for text in texts:
            for name, value in text.items():
                if name in COUNTERS or name.startswith("fail:"):
                    counters[name] = counters.get(name, 0) + (float(value) if name.endswith("_sum") else int(value))
        now = self._redis.now()
        finished = float(raw["finished"]) if "finished" in raw else None
        seconds = float(raw.get("seconds", 0))
        if "started" in raw:
            seconds += (finished or now) - float(raw["started"])
        return Record(
            job=Job.from_json(raw["spec"]),
            state=State(raw["state"]),
            error=raw.get("error") or None,
            listed=raw["listed"] == "1",
            planned=int(raw["planned"]),
            chunks_done=int(raw["chunks_done"]),
            cursor=raw["cursor"],
            counters=counters,
            created=float(raw["created"]),
            finished=finished,
            seconds=seconds,
            now=now,
        )

    def is_known(self, job_id: str) -> bool:
        """Whether there is such a job, open or ended."""
        return bool(self._do("exists", _key(job_id, "job")))

    def is_open(self, job_id: str) -> bool:
        """Whether anything of a job is still queued or in a worker's hands, its last record included."""
        return bool(self._do("exists", _key(job_id, "open")))

    def job_ids(self) -> list[str]:
        """Every job that is still known, newest first."""
        ids = list(self._do("zrevrange", "vdsr:jobs", 0, -1))
        known = [job_id for job_id in ids if self._do("exists", _key(job_id, "job"))]
        if gone := set(ids) - set(known):
            self._do("zrem", "vdsr:jobs", *gone)
        return known

    def active(self) -> list[str]:
        """Jobs that a sweeper must look at."""
        return list(self._do("smembers", ACTIVE))

    def in_hand(self, job_id: str) -> tuple[int, int, int]:
        """How many chunks of a job are queued, how many leased, and images of those begun and not recorded."""
        leased = self._do("hkeys", _key(job_id, "lease"))
        chunks = [member for member in self._do("zrange", _key(job_id, "open"), 0, -1) if member.isdigit()]
        begun = 0
        for chunk in leased:
            fields = set(self._do("hkeys", _key(job_id, f"progress:{chunk}")))
            begun += sum(f"row:{name[4:]}" not in fields for name in fields if name.startswith("try:"))
        return len(set(chunks) - set(leased)), len(leased), begun

    def _in_progress(self, job_id: str) -> list[dict[str, str]]:
        """The counters of open chunks."""
        members = self._do("zrange", _key(job_id, "open"), 0, -1)
        return self._redis.hashes([_key(job_id, f"count:{member}") for member in members])

    def _run(self, script: str, job_id: str, names: tuple[str, ...], *args: Any) -> Any:
        return self._redis.run(scripts.PRELUDE + script, _keys(job_id, *names), *args)

    def _do(self, command: str, *args: Any, **options: Any) -> Any:
        return self._redis.do(command, *args, **options)


COUNTERS = {
    "images",
    "ignored",
    "bytes",
    "done",
    "failed",
    "skipped",
    "done_bytes",
    "made_bytes",
    "pixels",
    "psnr_n",
    "psnr_exact",
    "psnr_none",
    "psnr_bicubic_sum",
    "psnr_vdsr_sum",
}


def count(rows: Iterable[Outcome], again: Mapping[str, str] | None = None) -> dict[str, float]:
    """What outcomes add to the counters.

    Args:
        again: key -> code of images that had failed before; that failure is taken back.
    """
    total: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        total[name] = total.get(name, 0) + value

    for row in rows:
        add(row.outcome, 1)
        add("done_bytes", row.size_bytes)
        add("made_bytes", row.size_bytes if row.outcome == "done" else 0)
        add("pixels", (row.width or 0) * (row.height or 0))
        if row.code and row.outcome == "failed":
            add(f"fail:{row.code}", 1)
        if again and row.key in again:
            add("failed", -1)
            add(f"fail:{again[row.key]}", -1)
            add("done_bytes", -row.size_bytes)
        if row.psnr is None:
            continue
        if row.psnr["vdsr"] is None:
            add("psnr_none", 1)
        elif row.psnr["vdsr"] == "inf":
            add("psnr_exact", 1)
        elif row.psnr["bicubic"] == "inf":  # no finite gain to average
            add("psnr_none", 1)
        else:
            add("psnr_n", 1)
            add("psnr_bicubic_sum", row.psnr["bicubic"])
            add("psnr_vdsr_sum", row.psnr["vdsr"])
    return total


def _keys(job_id: str, *names: str) -> tuple[str, ...]:
    return tuple(_key(job_id, name) for name in names)


def _key(job_id: str, name: str) -> str:
    return f"vdsr:{{{job_id}}}:{name}"
