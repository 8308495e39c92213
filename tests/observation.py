"""What tests of observation share: one worker with everything switched on, and real programs that watch it."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import servers
from helpers import VDSR, Service, children_of, wait_until
from prometheus_client.parser import text_string_to_metric_families

from worker.client import Client
from worker.embedded import guarded, worker_command, worker_environment
from worker.settings import load_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
WINDOW = "1h"
"""Instead of Grafana's $__rate_interval."""
HOSTILE = "bad\n[2026-11-23 18:00:00,000: CRITICAL] forged\x1b[31m.png"

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""(series, labels) -> value."""


def scrape(port: int) -> Page:
    """What a page says now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(page: Page, name: str, **labels: str) -> float:
    """One series of a page, 0 if it is not there."""
    return page.get((name, frozenset(labels.items())), 0.0)


def total(page: Page, name: str, **labels: str) -> float:
    """The sum over all series that have these labels."""
    return sum(v for (series, given), v in page.items() if series == name and labels.items() <= dict(given).items())


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans by OTLP over HTTP, as a collector does; they lie in the server's `spans`."""

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        for each in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in each.resource.attributes if a.key == "service.name")
            self.server.spans += [(service, span) for scope in each.scope_spans for span in scope.spans]  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def collector() -> Iterator[http.server.ThreadingHTTPServer]:
    """A collector on a free port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.spans = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@dataclass(frozen=True)
class Observed:
    """A worker and the exporter of its fleet, and what watches them."""

    service: Service
    worker_port: int
    fleet_port: int
    log: Path
    spans: list[Any]
    prometheus: str | None
    """URL, where Prometheus is installed."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """Summaries of what was done."""

    @property
    def celery(self) -> int:
        """Process id of the worker's parent process."""
        return children_of(self.service.workers[0].pid)[0]

    def lines(self) -> list[dict[str, Any]]:
        """The worker's log, as far as it is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line]


@contextmanager
def observed(redis_url: str, folder: Path) -> Iterator[Observed]:
    """One worker that begins while its metrics port is taken, with JSON logs and traces."""
    worker_port, fleet_port, prometheus_port = servers.free_ports(3)
    with ExitStack() as stack:
        traces = stack.enter_context(collector())
        environment = {
            **worker_environment(load_settings({"VDSR_REDIS_URL": redis_url})),
            "VDSR_THREADS": "1",
            "VDSR_LEASE_S": "6",
            "VDSR_CHUNK_IMAGES": "10",
            "VDSR_STATE_DIR": str(folder / "state"),
            "VDSR_CACHE_DIR": str(folder / "cache"),
            "VDSR_METRICS_PORT": str(worker_port),
            "VDSR_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{traces.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "TMPDIR": str(folder),
        }
        settings = load_settings(environment)
        client = Client.connect(settings)
        log = folder / "worker.log"
        with socket.create_server(("0.0.0.0", worker_port)):
            command = worker_command(name="watched@%h", level="DEBUG")
            worker = stack.enter_context(guarded(command, log=log, cwd=folder, env=environment))
            wait_until(lambda: len(client.workers()) == 1, 120)
        exporter = [VDSR, "metrics", "--port", str(fleet_port)]
        stack.enter_context(servers.child_process(exporter, folder / "exporter.log", environment))
        prometheus = None
        if shutil.which("prometheus"):
            prometheus = stack.enter_context(_prometheus(folder, prometheus_port, [worker_port, fleet_port]))
        spans = traces.spans  # type: ignore[attr-defined]
        yield Observed(
            Service(client, settings, [worker], folder, environment), worker_port, fleet_port, log, spans, prometheus
        )


@contextmanager
def _prometheus(folder: Path, port: int, targets: list[int]) -> Iterator[str]:
    """A Prometheus with our rules that asks these ports each second."""
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    jobs = [{"job_name": "vdsr", "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with servers.child_process(command, folder / "prometheus.log", dict(os.environ)):
        wait_until(lambda: len(_try_query(url, "up == 1")) == len(targets), 120)
        yield url


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers now: series with their values."""
    words = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", WINDOW)})
    return list(ask(f"{url}/api/v1/query?{words}")["data"]["result"])


def ask(url: str) -> Any:
    """JSON from a URL."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.loads(answer.read())


def _try_query(url: str, expression: str) -> list[dict[str, Any]]:
    try:
        return query(url, expression)
    except OSError:  # it starts
        return []


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Prometheus' own checker."""
    return subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
