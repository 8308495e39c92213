"""What an operator sees: metrics, alerts, the dashboard, logs and traces of a real worker that did a real job."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import observation
import pytest
import servers
from helpers import kill, make_photos, pool_of, wait_until
from observation import DEPLOY, HOSTILE, Observed, ask, promtool, query, scrape, total, value

from worker.app import Queue
from worker.client import Client, draft
from worker.embedded import LocalRedis
from worker.jobs import Options
from worker.metrics import catalogue
from worker.metrics.fleet import Observed as FleetFigures
from worker.plan import plan_job
from worker.settings import load_settings

pytestmark = [pytest.mark.redis]

PANELS = [
    (panel["title"], target["expr"])
    for panel in json.loads((DEPLOY / "grafana" / "dashboards" / "vdsr.json").read_text())["panels"]
    for target in panel.get("targets", [])
]
SERIES = {
    metric.name + tail: {*metric.labels, *({"le"} if tail == "_bucket" else {})}
    for metric in (*catalogue.WORKER, *catalogue.FLEET)
    for tail in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
"""Series -> its labels."""


@pytest.fixture(scope="module")
def watched() -> Iterator[Observed]:
    """A worker of its own Redis that has done a job of thirty pictures, two files that are none, and one again."""
    folder = Path(tempfile.mkdtemp(prefix="vdsr-"))
    with LocalRedis(folder) as redis, observation.observed(redis.url, folder) as seen:
        wait_until(lambda: "metrics are served" in seen.log.read_text(), 60)
        photos = make_photos(folder / "photos", 30)
        (photos / HOSTILE).write_bytes(b"no picture")
        (photos / "empty.png").write_bytes(b"")
        seen.jobs.append(seen.service.run(photos))
        shutil.copy(photos / "0000.jpg", photos / "more.jpg")
        seen.jobs.append(seen.service.run(photos))
        yield seen
    shutil.rmtree(folder)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_the_pages_have_the_catalogue_and_nothing_else_of_ours(watched: Observed) -> None:
    for port, metrics in ((watched.worker_port, catalogue.WORKER), (watched.fleet_port, catalogue.FLEET)):
        page = scrape(port)
        wanted = {name for metric in metrics for name in SERIES if name.startswith(metric.name)}

        assert {name for name, _ in page if name.startswith("vdsr_")} == wanted
        assert [name for name, labels in page if name in SERIES and {key for key, _ in labels} != SERIES[name]] == []


def test_images_are_counted_as_the_ledger_counts_them(watched: Observed) -> None:
    page = scrape(watched.worker_port)

    images = {name: sum(job["images"][name] for job in watched.jobs) for name in ("done", "failed", "skipped")}
    assert images == {"done": 31, "failed": 4, "skipped": 30}
    assert {name: total(page, "vdsr_images_total", outcome=name) for name in images} == images
    assert value(page, "vdsr_images_total", outcome="failed", code="empty") == 2
    assert value(page, "vdsr_pixels_total") == 31 * 48 * 32
    assert value(page, "vdsr_stage_seconds_count", stage="decode") == 31
    assert value(page, "vdsr_psnr_gain_db_count") == 31
    assert value(page, "vdsr_queue_wait_seconds_count") == 8  # chunks of ten
    assert value(page, "vdsr_model_info", version=watched.jobs[0]["model"]["version"], sha="7f4ec7364578") == 1
    assert value(page, "vdsr_model_reload_total", result="refused") == 0


def test_a_taken_port_is_told_and_taken_once_it_is_free(watched: Observed) -> None:
    texts = [line["message"] for line in watched.lines() if line["logger"] == "worker.metrics.page"]

    assert [text for text in texts if "each worker on a host needs its own VDSR_METRICS_PORT" in text] == texts[:1]
    assert texts[1:] == [f"metrics are served on 0.0.0.0 port {watched.worker_port}"]


def test_a_killed_process_takes_no_count_with_it_and_its_files_do_not_pile_up(watched: Observed) -> None:
    before = scrape(watched.worker_port)
    for _ in range(2):
        child = pool_of(watched.celery)[0]
        kill(child)
        wait_until(lambda gone=child: [pid for pid in pool_of(watched.celery) if pid != gone] != [], 60)
        wait_until(lambda gone=child: not Path(f"/proc/{gone}").exists(), 60)
        photos = make_photos(watched.service.folder / f"killed-{child}", 3)
        assert watched.service.run(photos)["images"]["done"] == 3

    page = scrape(watched.worker_port)

    added = {name: page[name] - before.get(name, 0) for name in page if name[0] == "vdsr_images_total"}
    assert {name: n for name, n in added.items() if n} == {
        ("vdsr_images_total", frozenset({("outcome", "done"), ("code", "")})): 6
    }
    assert value(page, "vdsr_stage_seconds_count", stage="write") == value(page, "vdsr_psnr_gain_db_count") == 37
    [folder] = watched.service.folder.glob("vdsr-metrics-*")
    owners = {path.stem.rpartition("_")[2] for path in folder.glob("*.db")}
    assert owners == {"ended", str(watched.celery), *map(str, pool_of(watched.celery))}


def test_a_kill_in_the_middle_of_a_chunk_counts_nothing_twice(watched: Observed) -> None:
    before = scrape(watched.worker_port)
    photos = make_photos(watched.service.folder / "large", 12, size=(300, 200))
    job_id = watched.service.submit(photos)
    counters = watched.service.client.ledger
    for least in (2, 7):
        wait_until(lambda n=least: counters.record(job_id).counters.get("done", 0) >= n, 200)
        kill(pool_of(watched.celery)[0])
        wait_until(lambda: len(pool_of(watched.celery)) == 1, 60)
    summary = watched.service.wait(job_id)

    page = scrape(watched.worker_port)

    counted = total(page, "vdsr_images_total", outcome="done") - total(before, "vdsr_images_total", outcome="done")
    assert summary["images"]["done"] == 12
    # A kill between the ledger and the count may cost what that one step had recorded, here an image or two.
    assert 12 - 2 * 2 <= counted <= 12
    assert value(page, "vdsr_redelivered_total") - value(before, "vdsr_redelivered_total") >= 1


def test_metrics_of_a_worker_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    from worker.metrics.page import PREFIX, make_folder

    (tmp_path / f"{PREFIX}dead").mkdir()
    mine = make_folder(tmp_path)

    other = make_folder(tmp_path)

    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


# --- the fleet -------------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(quiet_redis_url: str, tmp_path: Path) -> tuple[Client, str]:
    """A job of thirty pictures that nobody works on, and its client."""
    settings = load_settings({"VDSR_REDIS_URL": quiet_redis_url, "VDSR_CHUNK_IMAGES": "10", "VDSR_STATE_DIR": "/tmp/x"})
    client = Client.connect(settings)
    return client, client.submit(draft(str(make_photos(tmp_path / "p", 30)), None, Options(), settings))


def figures(client: Client) -> observation.Page:
    """What the exporter would serve."""
    families = FleetFigures(client.settings.redis_url).collect()
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_fleet_shows_what_waits_and_what_is_in_hand(waiting: tuple[Client, str]) -> None:
    client, job_id = waiting
    before = figures(client)
    queue = Queue(client.settings)
    plan_job(client.ledger, job_id, client.settings, "cpu", lambda chunk: queue.upscale(job_id, chunk))
    time.sleep(0.2)
    planned = figures(client)
    client.ledger.lease(job_id, 1, "token", 60)
    client.ledger.beat(job_id, 1, "token", 60, start=[0, 1, 2])

    page = figures(client)

    assert value(before, "vdsr_jobs_open", state="queued") == value(page, "vdsr_jobs_open", state="running") == 1
    assert value(planned, "vdsr_chunks_open", state="queued") == 3
    assert value(planned, "vdsr_images_in_flight") == 0
    assert value(page, "vdsr_images_waiting") == 30
    assert value(page, "vdsr_images_in_flight") == 3
    assert (value(page, "vdsr_chunks_open", state="queued"), value(page, "vdsr_chunks_open", state="leased")) == (2, 1)
    assert value(page, "vdsr_queue_depth", queue="upscale") == 4  # the plan's message is still there
    assert 0.2 < value(page, "vdsr_backlog_age_seconds", queue="upscale") < 60
    assert value(page, "vdsr_workers", queue="upscale") == 0
    assert value(page, "vdsr_redis_up") == 1


def test_a_queue_of_strange_messages_has_a_length_and_no_age(quiet_redis_url: str) -> None:
    client = Client.connect(load_settings({"VDSR_REDIS_URL": quiet_redis_url}))
    for text in ("no JSON", "[]", '{"headers": null}', '{"headers": {"vdsr_sent": [1]}}', '{"headers": {}}'):
        client.fleet._redis.do("delete", "vdsr:train")
        client.fleet._redis.do("lpush", "vdsr:train", text)

        page = figures(client)

        assert value(page, "vdsr_queue_depth", queue="train") == 1
        assert value(page, "vdsr_backlog_age_seconds", queue="train") == 0
    client.fleet._redis.do("delete", "vdsr:train")


def test_a_redis_that_is_away_is_told_by_a_page_that_still_answers(tmp_path: Path) -> None:
    port = servers.free_ports(1)[0]
    command = [observation.VDSR, "metrics", "--port", str(port)]
    environment = {**os.environ, "VDSR_REDIS_URL": "redis://:secret@127.0.0.1:1/0", "VDSR_STATE_DIR": str(tmp_path)}
    with servers.child_process(command, tmp_path / "log", environment):
        wait_until(lambda: "metrics at" in (tmp_path / "log").read_text())

        page = scrape(port)
        again = servers.child_process(command, tmp_path / "other", environment)
        with again as other:
            assert other.wait(60) == 2

    assert page[("vdsr_redis_up", frozenset())] == 0
    assert [name for name, _ in page if name.startswith("vdsr_") and name != "vdsr_redis_up"] == []
    assert "give another --host or --port" in (tmp_path / "other").read_text()
    assert "cannot reach Redis at redis://:***@127.0.0.1:1/0" in (tmp_path / "log").read_text()
    assert "secret" not in (tmp_path / "log").read_text()


# --- the dashboard and the alerts ------------------------------------------------------------------------------------


def rules() -> list[tuple[str, str]]:
    """(alert, expression)."""
    from ruamel.yaml import YAML

    groups = YAML(typ="safe").load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("title", "expression"), [*PANELS, *rules()])
def test_a_query_asks_only_for_series_and_labels_that_a_live_page_has(
    watched: Observed, title: str, expression: str
) -> None:
    live: dict[str, set[str]] = {}
    for name, labels in (*scrape(watched.worker_port), *scrape(watched.fleet_port)):
        live.setdefault(name, {"instance"}).update(key for key, _ in labels)
    asked = set(re.findall(r"\bvdsr_\w+", expression))

    assert asked
    assert asked - set(live) == set()
    labels = set().union(*(live[name] for name in asked))
    selected = re.findall(r"(\w+)\s*=~?\s*\"", expression)
    grouped = [
        word.strip() for found in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression) for word in found.split(",")
    ]
    assert {*selected, *grouped} - {""} - labels == set()


@pytest.mark.parametrize(("title", "expression"), PANELS)
def test_prometheus_answers_every_panel_with_figures_of_a_real_job(
    watched: Observed, title: str, expression: str
) -> None:
    if watched.prometheus is None:
        _absent("prometheus")

    def answered() -> bool:
        assert watched.prometheus is not None
        return bool(query(watched.prometheus, expression))

    wait_until(answered, 30)


def test_prometheus_evaluates_every_rule(watched: Observed) -> None:
    if watched.prometheus is None:
        _absent("prometheus")
    url = f"{watched.prometheus}/api/v1/rules"
    wait_until(lambda: all(rule["health"] == "ok" for rule in ask(url)["data"]["groups"][0]["rules"]))

    health = {rule["name"]: (rule["health"], rule["state"]) for rule in ask(url)["data"]["groups"][0]["rules"]}

    assert set(health) == {name for name, _ in rules()}
    assert health["VdsrNoWorker"] == ("ok", "inactive")
    assert health["VdsrModelRefused"] == ("ok", "inactive")


def test_every_alert_is_told_by_its_own_test_and_fires_when_it_should() -> None:
    if shutil.which("promtool") is None:
        _absent("promtool")
    tests = Path(__file__).with_name("alerts_test.yml")

    done = promtool("test", "rules", tests)

    assert done.returncode == 0, done.stdout + done.stderr
    fired = {name for name, _ in rules() if re.search(rf"alertname: {name}\n\s+exp_alerts:", tests.read_text())}
    assert fired == {name for name, _ in rules()}


def test_the_configuration_of_prometheus_is_one() -> None:
    if shutil.which("promtool") is None:
        _absent("promtool")

    done = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")

    assert done.returncode == 0, done.stdout + done.stderr


def _absent(program: str) -> None:
    """Debian's package is installed by .ci/run."""
    if os.environ.get("CI"):
        pytest.fail(f"{program} is not installed: apt-get install prometheus")
    pytest.skip(f"{program} is not installed: apt-get install prometheus")


# --- logs ------------------------------------------------------------------------------------------------------------


def test_every_line_of_the_log_is_json_with_the_ids_of_what_it_concerns(watched: Observed) -> None:
    lines = watched.lines()
    job_id = watched.jobs[0]["id"]

    about = [line for line in lines if line.get("job") == job_id]
    assert {line["logger"] for line in about} >= {"celery.worker.strategy", "celery.app.trace", "worker.chunk"}
    ours = [line for line in lines if line["level"] != "DEBUG" or line["logger"].startswith("worker")]
    assert [line for line in ours if job_id in line["message"] and line.get("job") != job_id] == []
    chunks = [line for line in about if "Task vdsr.upscale" in line["message"]]
    assert {line["chunk"] for line in chunks} == {0, 1, 2, 3}
    images = [line for line in about if "image" in line]
    assert len({line["image"] for line in images}) == 32
    assert {line["model"] for line in images} == {watched.jobs[0]["model"]["version"]}
    assert {line["worker"].partition("@")[0] for line in about} == {"watched"}  # a process begins without its name
    assert all({"time", "level", "logger", "message", "process", "pid"} <= set(line) for line in lines)


def test_the_name_of_a_file_is_one_field_and_forges_no_line(watched: Observed) -> None:
    told = [line for line in watched.lines() if line.get("image") == HOSTILE]

    assert {line["level"] for line in told} == {"INFO"}
    assert all(line["message"].startswith(f"image {HOSTILE} failed, unreadable: ") for line in told)
    assert "\x1b" not in watched.log.read_text()


def test_in_text_a_message_cannot_begin_a_line_nor_hide_one() -> None:
    import logging

    from worker.logs import Text

    formatter = Text(logging.Formatter("[%(levelname)s] %(message)s"))
    error = ValueError(f"{HOSTILE} at redis://u:secret@h/0")
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s failed\r", (HOSTILE,), (ValueError, error, None))

    lines = formatter.format(record).split("\n")

    assert lines[:2] == ["[INFO] bad", r"    [2026-11-23 18:00:00,000: CRITICAL] forged\x1b[31m.png failed\r"]
    assert all(line.startswith("    ") for line in lines[1:])
    assert not any("secret" in line for line in lines)
    assert "redis://u:***@h/0" in lines[-1]


# --- traces ----------------------------------------------------------------------------------------------------------


def attributes(span: Any) -> dict[str, Any]:
    """As a dict."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_chunk_is_a_trace_with_a_span_for_each_image_and_stage_linked_to_its_plan(watched: Observed) -> None:
    job_id = watched.jobs[0]["id"]

    def of(name: str) -> list[Any]:
        return [s for _, s in list(watched.spans) if s.name == name and attributes(s).get("vdsr.job") == job_id]

    wait_until(lambda: len(of("vdsr.upscale")) == 4 and len(of("vdsr.finish")) == 1)
    [plan] = of("vdsr.plan")
    chunks = {span.trace_id: span for span in of("vdsr.upscale")}
    wait_until(lambda: sum(s.name == "image" and s.trace_id in chunks for _, s in list(watched.spans)) == 32)

    assert {service for service, _ in watched.spans} == {"vdsr-worker"}
    assert {attributes(span)["vdsr.chunk"] for span in chunks.values()} == {0, 1, 2, 3}
    assert {link.span_id for span in chunks.values() for link in span.links} == {plan.span_id}
    inside = [span for _, span in watched.spans if span.trace_id in chunks]
    images = {span.span_id: span for span in inside if span.name == "image"}
    assert all(span.parent_span_id == chunks[span.trace_id].span_id for span in images.values())
    good = next(s for s in images.values() if attributes(s)["vdsr.image"] == "0000.jpg")
    assert attributes(good)["vdsr.outcome"] == "done"
    stages = [span.name for span in inside if span.parent_span_id == good.span_id]
    assert {"fetch", "decode", "upscale", "score", "encode", "write"} <= set(stages)
    bad = next(s for s in images.values() if attributes(s)["vdsr.image"] == HOSTILE)
    assert (attributes(bad)["vdsr.outcome"], attributes(bad)["vdsr.code"]) == ("failed", "unreadable")
    assert bad.status.code == 2  # error


def test_without_the_variables_neither_traces_nor_metrics_are_loaded() -> None:
    import subprocess

    code = (
        "import sys, worker.tasks, worker.metrics.page\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.exporter', 'prometheus'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on_and_off(environment: dict[str, str], wanted: bool) -> None:
    from worker.tracing import is_wanted

    assert is_wanted(environment) is wanted


# --- Flower ----------------------------------------------------------------------------------------------------------


def test_flower_sees_the_worker_and_its_queue(watched: Observed) -> None:
    port = servers.free_ports(1)[0]
    command = [sys.executable, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1", f"--port={port}"]
    environment = {**watched.service.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
    log = watched.service.folder / "flower.log"

    def asked(path: str) -> Any:
        try:
            return ask(f"http://127.0.0.1:{port}/api/{path}")
        except OSError:  # it starts
            return {}

    with servers.child_process(command, log, environment):
        wait_until(lambda: any(name.startswith("watched@") for name in asked("workers?refresh=1")), 120)
        queues = asked("queues/length")

    assert queues == {"active_queues": [{"name": "upscale", "messages": 0}]}
