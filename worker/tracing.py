"""Where does the time of an image go? Spans for OpenTelemetry, if its own variables ask for them (OTEL_*).

| span             | of what                                    | attributes                                         |
|------------------|--------------------------------------------|----------------------------------------------------|
| vdsr.plan        | a piece of listing                         | vdsr.job                                           |
| vdsr.upscale     | a chunk; linked to the plan that queued it | vdsr.job, vdsr.chunk, vdsr.worker                  |
| image            | an image of it                             | vdsr.image, vdsr.model, vdsr.outcome, vdsr.code    |
| fetch, decode... | a stage of that; the worker's stages       |                                                    |
| vdsr.finish      | a job's last record                        | vdsr.job                                           |

A chunk is a trace of its own, not a part of its job's: ten million images in one trace could be neither sampled nor
shown. Without the variables nothing of OpenTelemetry is loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_init, worker_process_shutdown

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CARRIED = ("traceparent", "tracestate")
"""Headers of messages, by W3C's standard."""
FLUSH_MS = 1000
"""How long a process that ends waits for the collector."""

log = logging.getLogger(__name__)

_providers: list[TracerProvider] = []  # the one of this process, once its pool has begun


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables name a collector and switch nothing off."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(name) for name in ENDPOINTS)


def flush() -> None:
    """Send what is recorded, before the process ends."""
    for provider in _providers:
        provider.force_flush(FLUSH_MS)


def carried() -> dict[str, str]:
    """What a message says of the span that sends it."""
    headers: dict[str, str] = {}
    if _providers:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


@contextmanager
def task(name: str, headers: Mapping[str, Any] | None = None, **ids: str | int | None) -> Iterator[None]:
    """The span of a message that is worked on.

    Args:
        headers: of the message; those of whoever queued it are linked.
        ids: attributes, whose names begin with "vdsr.".
    """
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry.trace import Link, SpanKind, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # Whoever may write to the queue may write anything into its headers.
    given = {name: text for name in CARRIED if isinstance(text := (headers or {}).get(name), str)}
    sender = get_current_span(TraceContextTextMapPropagator().extract(given)).get_span_context()
    links = [Link(sender)] if sender.is_valid else []
    attributes = {f"vdsr.{key}": value for key, value in ids.items() if value is not None}
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.CONSUMER,
        attributes=attributes,
        links=links,
        record_exception=False,  # the library would tell its text as it is; see `_text`
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as exc:
            _blame(span, exc)
            raise


def here() -> Context | None:
    """The span that is open in this thread, for `image` in another one; None without tracing."""
    if not _providers:
        return None
    from opentelemetry.context import get_current

    return get_current()


def image(key: str, model: str, parent: Context | None) -> Trace:
    """Begin an image.

    Args:
        model: its version.
        parent: of `here`.
    """
    tracer = _tracer()
    if tracer is None or parent is None:
        return NOTHING
    attributes = {"vdsr.image": _text(key), "vdsr.model": model}
    return _Recorded(tracer, tracer.start_span("image", parent, attributes=attributes))


class Trace:
    """An image of which nothing is recorded."""

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """A stage lasts as long as the block."""
        return nullcontext()

    def shared(self, name: str, start_ns: int, end_ns: int) -> None:
        """A stage that it went through with others, in Unix time."""

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """What became of it; the first word counts."""


NOTHING = Trace()


class _Recorded(Trace):
    def __init__(self, tracer: Tracer, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span, self._context = tracer, span, set_span_in_context(span)

    def stage(self, name: str) -> AbstractContextManager[Any]:
        return self._tracer.start_as_current_span(
            name, self._context, record_exception=False, set_status_on_exception=False
        )

    def shared(self, name: str, start_ns: int, end_ns: int) -> None:
        self._tracer.start_span(name, self._context, start_time=start_ns).end(end_ns)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        if not self._span.is_recording():
            return
        self._span.set_attribute("vdsr.outcome", outcome)
        if error is not None:
            _blame(self._span, error)
        self._span.end()


def _blame(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("vdsr.code", str(getattr(error, "code", None) or type(error).__name__))
    span.set_status(StatusCode.ERROR, _text(str(error)))


def _text(name: str) -> str:
    """What UTF-8 has no bytes for, as names of files may hold, would cost the whole batch of spans."""
    return name.encode(errors="backslashreplace").decode()


def _tracer() -> Tracer | None:
    return _providers[0].get_tracer("vdsr") if _providers else None


@worker_process_init.connect  # type: ignore[untyped-decorator]  # celery's signals are not typed
def _start(**_: Any) -> None:
    if is_wanted(os.environ) and not _providers and (provider := _provider()) is not None:
        _providers.append(provider)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # as above
def _stop(**_: Any) -> None:
    flush()


def _provider() -> TracerProvider | None:
    """Sends to the collector that the variables name; they say what is sampled, too."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        log.warning("no traces, though OTEL_* variables ask for them: %s; pip install 'vdsr[otel]'", exc)
        return None
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "vdsr-worker"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
