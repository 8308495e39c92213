"""`vdsr metrics`: what belongs to the fleet, for Prometheus."""

from __future__ import annotations

import signal
import threading

import click


@click.command(name="metrics", epilog="Example: vdsr metrics --host 0.0.0.0")
@click.option("--port", type=click.IntRange(1, 65535), default=9541, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; 0.0.0.0 for other hosts.")
def command(port: int, host: str) -> int:
    """Serve queues, open jobs and workers of the Redis of VDSR_REDIS_URL as Prometheus metrics, until Ctrl-C.

    One for a fleet; each worker serves its own figures (VDSR_METRICS_PORT). A Redis that is away is told as
    vdsr_redis_up 0.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    from cli.output import say
    from worker.errors import UsageError
    from worker.logs import to_stderr
    from worker.metrics.fleet import Observed
    from worker.settings import load_settings

    settings = load_settings()
    to_stderr(settings.log_format)
    registry = CollectorRegistry()
    registry.register(Observed(settings.redis_url))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by a supervisor is a Ctrl-C
    try:
        start_http_server(port, host, registry)
    except OSError as exc:
        raise UsageError(f"cannot listen on {host} port {port}: {exc.strerror}; give another --host or --port") from exc
    say(f"metrics at http://{host}:{port}/metrics    (Ctrl-C ends)")
    threading.Event().wait()
    return 0
