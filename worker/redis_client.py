"""How is Redis spoken to? By commands and scripts, repeated while it is away, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from worker.errors import BrokerRefused, BrokerUnreachable
from worker.settings import mask

_NOW = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
"""


class RedisClient:
    """A connection to one Redis; nothing is connected before the first call.

    Every call may raise BrokerUnreachable, or BrokerRefused where Redis answers no.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: redis://, rediss:// or unix:// of Redis.
        """
        self.url = url
        self._redis: redis.Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="surrogateescape",  # names of files that are not UTF-8
            socket_timeout=15,
            socket_connect_timeout=5,
            health_check_interval=10,
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=1), 3),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
        )
        self._scripts: dict[str, Script] = {}

    def run(self, script: str, keys: Sequence[str], *args: Any) -> Any:
        """Run a Lua script, atomically; `now` is Redis' time in seconds there."""
        if script not in self._scripts:
            self._scripts[script] = self._redis.register_script(_NOW + script)
        return self._guarded(self._scripts[script], keys=keys, args=args)

    def do(self, command: str, *args: Any, **options: Any) -> Any:
        """One command, by redis-py's name of it."""
        return self._guarded(getattr(self._redis, command), *args, **options)

    def hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """Several hashes in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return list(self._guarded(pipeline.execute))

    def now(self) -> float:
        """Redis' time in seconds."""
        whole, micros = self.do("time")
        return int(whole) + int(micros) / 1e6

    def _guarded(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except (RedisConnectionError, RedisTimeoutError) as exc:
            reason = str(exc.__cause__ or exc).replace(self.url, mask(self.url))
            raise BrokerUnreachable(
                f"cannot reach Redis at {mask(self.url)} ({reason}); set VDSR_REDIS_URL, "
                "start 'vdsr dev', or use 'vdsr upscale' to work without a server"
            ) from exc
        except RedisError as exc:  # out of memory, read-only, not permitted, ...
            raise BrokerRefused(f"Redis at {mask(self.url)} refused a command: {exc}; see its log") from exc
