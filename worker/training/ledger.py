"""Who trains which run, and how does it stand? As worker.ledger does for jobs, with one lease for the whole run.

| key            | type | holds                                                                                 |
|----------------|------|---------------------------------------------------------------------------------------|
| vdsr:runs      | zset | run id -> created; cleaned of expired runs when listed                                |
| vdsr:runs:open | set  | ids of runs that the sweeper must look at                                             |
| vdsr:{RUN}:run | hash | spec (JSON), state, error, progress (JSON), result (JSON), created, started, finished |
|                |      | token of the worker that trains it, deadline of its lease or of its message,          |
|                |      | step that was last told, leases: how often it was taken since that step changed       |

A run's files lie in its folder (vdsr.training.run); the hash expires KEEP_S after the run has ended.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from worker.errors import JobStopped, LeaseLost, NewerFormat, NotFound
from worker.jobs import SCHEMA, State
from worker.ledger import KEEP_S, PATIENCE_S, QUEUED_S
from worker.redis_client import RedisClient
from worker.scripts import SAYS
from worker.training.runs import Run

_PRELUDE = (
    SAYS
    + """
local function ended(state) return state == 'completed' or state == 'failed' or state == 'cancelled' end
"""
)

# KEYS: run, runs, open. ARGV: spec, id, QUEUED_S. -> 1, or 0 if the run was there already.
_CREATE = """
if redis.call('HSETNX', KEYS[1], 'spec', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'created', now, 'deadline', now + ARGV[3], 'leases', 0, 'step', 0)
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('SADD', KEYS[3], ARGV[2])
return 1
"""

# KEYS: run. ARGV: token, lease_s, SCHEMA. -> {verdict, spec, leases}, or {'newer', its format}: nothing is changed
_LEASE = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'unknown'} end
local schema = tonumber(says(redis.call('HGET', KEYS[1], 'spec'), 'schema') or 0)
if schema > tonumber(ARGV[3]) then return {'newer', schema} end
if ended(state) then return {'ended'} end
local owner = redis.call('HGET', KEYS[1], 'token')
if owner and owner ~= ARGV[1] and tonumber(redis.call('HGET', KEYS[1], 'deadline')) > now then return {'leased'} end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'deadline', now + ARGV[2], 'state', 'running')
redis.call('HSETNX', KEYS[1], 'started', now)
return {'granted', redis.call('HGET', KEYS[1], 'spec'), redis.call('HINCRBY', KEYS[1], 'leases', 1)}
"""

# KEYS: run. ARGV: token, lease_s, step, progress. -> 'ok', 'lost' or 'ended'
_BEAT = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 'lost' end
if ended(redis.call('HGET', KEYS[1], 'state')) then return 'ended' end
if tonumber(ARGV[3]) > tonumber(redis.call('HGET', KEYS[1], 'step')) then
  redis.call('HSET', KEYS[1], 'leases', 0, 'step', ARGV[3])
end
redis.call('HSET', KEYS[1], 'deadline', now + ARGV[2], 'progress', ARGV[4])
return 'ok'
"""

# KEYS: run. ARGV: token, QUEUED_S, 1 if the attempt is not to count. -> 1, or 0 if it was not ours.
_RELEASE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'token')
if ARGV[3] == '1' then redis.call('HINCRBY', KEYS[1], 'leases', -1) end
redis.call('HSET', KEYS[1], 'deadline', now + ARGV[2])
return 1
"""

# KEYS: run, open. ARGV: id, token or '' for anybody, state, error, result, KEEP_S. -> the state before, or 'lost'
_END = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or ended(state) then return state end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then return 'lost' end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'error', ARGV[4], 'result', ARGV[5], 'finished', now)
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return state
"""

# Overdue: its worker is gone, or its message. KEYS: run, open. ARGV: id, 1 if the queue is empty, QUEUED_S, PATIENCE_S.
# -> 1 if it must be queued again
_SWEEP = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state or ended(state) then redis.call('SREM', KEYS[2], ARGV[1]) return 0 end
local overdue = now - tonumber(redis.call('HGET', KEYS[1], 'deadline'))
local owned = redis.call('HDEL', KEYS[1], overdue >= 0 and 'token' or '') == 1
if overdue < 0 or not (owned or ARGV[2] == '1' or overdue >= tonumber(ARGV[4])) then return 0 end
-- While other messages wait, one that is not taken probably waits too: it is repeated late and seldom.
local soon = owned or ARGV[2] == '1'
redis.call('HSET', KEYS[1], 'deadline', now + (soon and ARGV[3] or 6 * ARGV[4]))
return 1
"""

RUNS, OPEN = "vdsr:runs", "vdsr:runs:open"


@dataclass(frozen=True)
class RunRecord:
    """Everything the ledger knows about a run."""

    run: Run
    state: State
    error: str | None
    progress: dict[str, Any]
    """See worker.training.task; empty before the first look."""
    result: dict[str, Any]
    """Of a completed run: version, sha256, psnr_y, and of a publication: promoted, reason."""
    created: float
    finished: float | None
    seconds: float
    """Since the run was first taken."""


class RunLedger:
    """The training runs of one Redis."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix:// of Redis; nothing is connected yet.
        """
        self._redis = RedisClient(url)

    def create(self, run: Run) -> None:
        """Record a new run, to be queued."""
        self._redis.run(_CREATE, (_key(run.id), RUNS, OPEN), run.to_json(), run.id, QUEUED_S)

    def lease(self, run_id: str, token: str, lease_s: float) -> tuple[str, int] | None:
        """Own a run for a while: its record as JSON, and how often it was taken, this time included, since it got on.

        None if it is another's or has ended.

        Raises:
            NewerFormat: a newer version of this program submitted it.
        """
        verdict, *answer = self._redis.run(_PRELUDE + _LEASE, (_key(run_id),), token, lease_s, SCHEMA)
        if verdict == "newer":
            raise NewerFormat(f"run {run_id}", answer[0], SCHEMA)
        return (answer[0], int(answer[1])) if verdict == "granted" else None

    def beat(self, run_id: str, token: str, lease_s: float, step: int, progress: dict[str, Any]) -> None:
        """Renew a lease, and tell how the run stands.

        Raises:
            JobStopped: the run was cancelled.
            LeaseLost: another worker trains it by now.
        """
        answer = self._redis.run(_PRELUDE + _BEAT, (_key(run_id),), token, lease_s, step, json.dumps(progress))
        if answer == "ended":
            raise JobStopped(run_id)
        if answer == "lost":
            raise LeaseLost(run_id)

    def release(self, run_id: str, token: str, *, blameless: bool) -> bool:
        """Give a run back before its lease runs out; False if it was not ours.

        Args:
            blameless: this attempt does not count against the run.
        """
        return bool(self._redis.run(_RELEASE, (_key(run_id),), token, QUEUED_S, int(blameless)))

    def end(
        self, run_id: str, state: State, *, token: str = "", error: str = "", result: dict[str, Any] | None = None
    ) -> State:
        """Close a run; the state it was in before.

        Args:
            token: of the worker that trained it; empty for a user, who may stop any.

        Raises:
            NotFound: no such run.
            LeaseLost: another worker trains it by now.
        """
        before = self._redis.run(
            _PRELUDE + _END,
            (_key(run_id), OPEN),
            run_id,
            token,
            state.value,
            error,
            json.dumps(result or {}),
            KEEP_S,
        )
        if before is None:
            raise NotFound(f"no training run {run_id!r} is known; see 'vdsr list'")
        if before == "lost":
            raise LeaseLost(run_id)
        return State(before)

    def sweep(self, *, queue_empty: bool) -> list[str]:
        """Runs whose worker or message is lost, to be queued again."""
        found = []
        for run_id in self._redis.do("smembers", OPEN):
            keys, limits = (_key(run_id), OPEN), (int(queue_empty), QUEUED_S, PATIENCE_S)
            if self._redis.run(_PRELUDE + _SWEEP, keys, run_id, *limits):
                found.append(run_id)
        return found

    def record(self, run_id: str) -> RunRecord:
        """What is known of a run.

        Raises:
            NotFound: no such run.
        """
        raw = self._redis.do("hgetall", _key(run_id))
        if "spec" not in raw:
            raise NotFound(f"no training run {run_id!r} is known; see 'vdsr list'")
        finished = float(raw["finished"]) if "finished" in raw else None
        started = float(raw["started"]) if "started" in raw else None
        return RunRecord(
            run=Run.from_json(raw["spec"]),
            state=State(raw["state"]),
            error=raw.get("error") or None,
            progress=json.loads(raw.get("progress", "{}")),
            result=json.loads(raw.get("result", "{}")),
            created=float(raw["created"]),
            finished=finished,
            seconds=(finished or self._redis.now()) - started if started else 0.0,
        )

    def in_folder(self, folder: str) -> str | None:
        """The run that is queued or being trained in a folder, if there is one."""
        for run_id in self._redis.do("smembers", OPEN):
            with suppress(NotFound, NewerFormat):
                record = self.record(run_id)
                if record.run.folder == folder and not record.state.ended:
                    return str(run_id)
        return None

    def run_ids(self) -> list[str]:
        """Every run that is still known, newest first."""
        ids = list(self._redis.do("zrevrange", RUNS, 0, -1))
        known = [run_id for run_id in ids if self._redis.do("exists", _key(run_id))]
        if gone := set(ids) - set(known):
            self._redis.do("zrem", RUNS, *gone)
        return known


def _key(run_id: str) -> str:
    return f"vdsr:{{{run_id}}}:run"
