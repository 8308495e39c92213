"""How does a worker take a message off Redis that is none? It says so, drops it and takes the next one.

Whoever may write to the queue may put anything there. What is not in Celery's form ends a worker, or stays in its hand
for ever, so that it takes nothing else; a supervisor that starts it again does not make that better.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from worker import health

MISREAD = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What kombu and Celery raise over a message that they cannot read. Tasks run elsewhere and raise nothing here."""

log = logging.getLogger(__name__)


class Channel(redis.Channel):
    """kombu's, but for messages that it or Celery trips over."""

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], consumer_tag: str, **options: Any
    ) -> Any:
        """As kombu's; a message that cannot be taken is given up."""

        def take(message: Any) -> Any:
            try:
                return callback(message)
            except MISREAD:
                log.exception("a message on the queue %s cannot be understood; it is dropped", queue)
                if not (no_ack or message.acknowledged):
                    message.reject()
                return None

        return super().basic_consume(  # type: ignore[no-untyped-call]  # kombu has no types
            queue, no_ack, take, consumer_tag, **options
        )

    def _brpop_read(self, **options: Any) -> Any:
        try:
            taken = super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # as above
        except Empty:  # Redis has answered that there is nothing
            health.beat()
            raise
        except MISREAD as exc:
            log.exception("what lay on a queue is no message of Celery's; it is dropped")
            raise Empty from exc  # as if nothing had been there: the loop goes on
        health.beat()
        return taken


class Transport(redis.Transport):
    """kombu's with this channel."""

    Channel = Channel


def register() -> None:
    """Have kombu use it for redis:// and rediss:// in this process."""
    path = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=path, rediss=path)
