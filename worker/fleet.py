"""Which workers live, what has each been told, and who looks after the queue? Kept in Redis, for a while only.

| key                | type   | holds                                                                         |
|--------------------|--------|-------------------------------------------------------------------------------|
| vdsr:workers:QUEUE | zset   | worker name -> when last seen, of those that take this queue's messages       |
| vdsr:busy:QUEUE    | zset   | worker name -> when last seen, of those that have a task of it in hand; gone  |
|                    |        | WORKER_SEEN_S after the last report. Autoscalers read it (deploy/kubernetes)  |
| vdsr:promoted      | hash   | serial, version: the last promotion that Redis was told of (worker.registry)  |
| vdsr:refused       | hash   | version -> why a worker will not use it; deleted at the next promotion        |
| vdsr:sweeper       | string | the worker that sweeps, for some seconds                                      |
| vdsr:QUEUE         | list   | Celery's messages: plans, last records, and chunks that a worker lost or gave |
|                    |        | back. Workers take these first                                                |
| vdsr:QUEUE^F^V3    | list   | the same: chunks for the first time (^F^V: bytes 6 and 22, kombu's separator) |
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from worker.redis_client import RedisClient

WORKER_SEEN_S = 30
"""A worker that has not reported for this long counts as gone."""
ORDINARY = 3
"""Priority of a chunk for the first time; 0 is the highest. A lost chunk would wait behind all others of its job."""
SENT = "vdsr_sent"
"""Header of a message: Unix time in seconds at which it was queued, by its sender's clock."""
PROMOTED = "vdsr:promoted"
REFUSED = "vdsr:refused"

# Late announcements of what was promoted before change nothing. KEYS: promoted, refused. ARGV: serial, version.
_ANNOUNCE = """
if tonumber(redis.call('HGET', KEYS[1], 'serial') or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'serial', ARGV[1], 'version', ARGV[2])
redis.call('DEL', KEYS[2])
return 1
"""


class Fleet:
    """The workers of one Redis."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix:// of Redis; nothing is connected yet.
        """
        self._redis = RedisClient(url)

    def ping(self) -> str:
        """The server's version."""
        info = self._redis.do("info", "server")
        return str(info.get("valkey_version") or info["redis_version"])

    def queue_length(self, queue: str) -> int:
        """Messages waiting in a Celery queue."""
        return sum(int(self._redis.do("llen", key)) for key in _lists(queue))

    def messages(self, queue: str) -> list[str]:
        """Those messages, as kombu wrote them."""
        return [text for key in _lists(queue) for text in self._redis.do("lrange", key, 0, -1)]

    def oldest_s(self, queue: str) -> float:
        """Seconds since the message that waits longest was queued, by its sender's clock; 0 if none waits."""
        ends = [text for key in _lists(queue) for text in self._redis.do("lrange", key, -1, -1)]  # taken from there
        sent = [moment for moment in map(sent_at, ends) if moment is not None]
        return max(0.0, float(self._redis.now()) - min(sent)) if sent else 0.0

    def claim(self, role: str, owner: str, seconds: float) -> bool:
        """Whether this process has a role ("sweeper") for the next while."""
        key, milliseconds = f"vdsr:{role}", int(seconds * 1000)
        return bool(self._redis.do("set", key, owner, px=milliseconds, nx=True) or self._redis.do("get", key) == owner)

    def report_worker(self, name: str, queues: Iterable[str], busy: Collection[str] = ()) -> None:
        """A worker is alive and takes the messages of these queues.

        Args:
            busy: the queues of which it has a task in hand.
        """
        seconds = int(self._redis.now())
        for queue in queues:
            self._redis.do("zadd", _workers(queue), {name: seconds})
            self._redis.do("zremrangebyscore", _workers(queue), "-inf", seconds - WORKER_SEEN_S)
            if queue in busy:
                self._redis.do("zadd", _busy(queue), {name: seconds})
                self._redis.do("expire", _busy(queue), WORKER_SEEN_S)
            else:
                self._redis.do("zrem", _busy(queue), name)
            self._redis.do("zremrangebyscore", _busy(queue), "-inf", seconds - WORKER_SEEN_S)

    def forget_worker(self, name: str, queues: Iterable[str]) -> None:
        """A worker has ended."""
        for queue in queues:
            self._redis.do("zrem", _workers(queue), name)
            self._redis.do("zrem", _busy(queue), name)

    def workers(self, queue: str) -> list[str]:
        """Workers of a queue that were seen lately."""
        since = int(self._redis.now()) - WORKER_SEEN_S
        return list(self._redis.do("zrangebyscore", _workers(queue), since, "+inf"))

    def unseen_s(self, queue: str) -> float:
        """Seconds since a worker of a queue was last seen: 0 if lately, infinity if no trace of one is left."""
        last = self._redis.do("zrange", _workers(queue), -1, -1, withscores=True)
        if not last:
            return float("inf")
        since = max(0.0, float(self._redis.now()) - float(last[0][1]))
        return since if since > WORKER_SEEN_S else 0.0

    def announce(self, serial: int, version: str) -> bool:
        """Tell every worker, by its next lease or beat, that a version is in production; False if it was known."""
        return bool(self._redis.run(_ANNOUNCE, (PROMOTED, REFUSED), serial, version))

    def report_refusal(self, version: str, reason: str) -> None:
        """A worker will not use a promoted version."""
        self._redis.do("hset", REFUSED, version, reason)

    def refusals(self) -> dict[str, str]:
        """Versions that a worker has refused since the last promotion, and why."""
        return dict(self._redis.do("hgetall", REFUSED))


def sent_at(message: str) -> float | None:
    """Unix time at which a message as kombu wrote it was queued; None if it does not say."""
    try:
        return float(json.loads(message)["headers"][SENT])
    except (ValueError, LookupError, TypeError, RecursionError):  # whoever may write to the queue may write anything
        return None


def _lists(queue: str) -> tuple[str, str]:
    return f"vdsr:{queue}", f"vdsr:{queue}\x06\x16{ORDINARY}"


def _workers(queue: str) -> str:
    return f"vdsr:workers:{queue}"


def _busy(queue: str) -> str:
    return f"vdsr:busy:{queue}"
