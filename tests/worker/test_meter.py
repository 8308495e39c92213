"""What a worker's process counts: by instruments of its own, as long as no parent has made it a folder."""

from __future__ import annotations

import math

import pytest

from vdsr.upscale import Upscaler
from worker.jobs import Model, Outcome
from worker.metrics import catalogue
from worker.metrics.meter import Counting, Meter, failure_codes


def figure(meter: Counting, metric: catalogue.Metric, series: str = "", **labels: str) -> float | None:
    """One series, None if it is not there."""
    instrument = meter._gauges.get(metric.name) or meter._of.get(metric.name)
    samples = [s for family in instrument.collect() for s in family.samples] if instrument else []
    return next((s.value for s in samples if s.name == (series or metric.name) and s.labels == labels), None)


def test_what_an_engine_had_to_do_again_is_counted_once_and_for_each_engine() -> None:
    meter, engines = Counting(), [Upscaler(device="cpu", engine="torch").engine for _ in range(2)]
    assert figure(meter, catalogue.TILE) is None  # a process that has computed nothing has no tile of 0

    for engine in engines:
        engine.relieved += 2
        engine.redone += 5
        meter.computed(engine)
        meter.computed(engine)
    engines[0].relieved += 1
    meter.computed(engines[0])

    assert figure(meter, catalogue.OOM) == 5
    assert figure(meter, catalogue.NONFINITE) == 10
    assert figure(meter, catalogue.TILE) == 256


def test_only_finite_gains_are_observed() -> None:
    meter = Counting()
    for gain in (1.5, -0.25, "inf", None):
        psnr = {"kind": "reference", "bicubic": 30.0, "vdsr": 31.5, "gain": gain}
        meter.recorded([Outcome("a", "a", "done", 1, psnr=psnr, width=2, height=3, seconds={"decode": 0.5})])
    meter.recorded([Outcome("b", "b", "failed", 1, code="crashed"), Outcome("c", "c", "skipped", 1)])

    assert figure(meter, catalogue.GAIN, "vdsr_psnr_gain_db_count") == 2
    assert figure(meter, catalogue.GAIN, "vdsr_psnr_gain_db_bucket", le="0.0") == 1
    assert figure(meter, catalogue.GAIN, "vdsr_psnr_gain_db_bucket", le="1.5") == 2
    assert figure(meter, catalogue.PIXELS) == 24
    assert figure(meter, catalogue.IMAGES, outcome="done", code="") == 4
    assert figure(meter, catalogue.IMAGES, outcome="failed", code="crashed") == 1
    assert figure(meter, catalogue.IMAGES, outcome="skipped", code="") == 1


def test_a_wait_by_a_clock_that_goes_ahead_is_none() -> None:
    meter = Counting()
    for wait_s in (3.0, -100.0, None):
        meter.leased(wait_s, again=wait_s is None)

    assert figure(meter, catalogue.QUEUE_WAIT, "vdsr_queue_wait_seconds_sum") == 3
    assert figure(meter, catalogue.QUEUE_WAIT, "vdsr_queue_wait_seconds_count") == 2
    assert figure(meter, catalogue.REDELIVERED) == 1


def test_of_two_models_the_last_one_is_in_use() -> None:
    meter = Counting()
    for version in ("one", "two"):
        meter.serves(Model(version, version * 20))

    assert figure(meter, catalogue.MODEL, version="one", sha="oneoneoneone") == 0
    assert figure(meter, catalogue.MODEL, version="two", sha="twotwotwotwo") == 1


def test_series_that_an_alert_looks_at_begin_at_zero() -> None:
    meter = Counting()

    assert {figure(meter, catalogue.IMAGES, outcome="failed", code=code) for code in failure_codes()} == {0}
    assert {figure(meter, catalogue.RELOAD, result=result) for result in catalogue.RELOADS} == {0}
    assert {"disk_full", "storage_unavailable", "access_denied", "storage_error", "crashed"} <= set(failure_codes())


@pytest.mark.parametrize("metric", catalogue.WORKER + catalogue.FLEET, ids=lambda metric: metric.name)
def test_names_say_unit_and_kind(metric: catalogue.Metric) -> None:
    assert metric.name.startswith("vdsr_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert list(metric.buckets) == sorted(metric.buckets)
    assert math.isfinite(sum(metric.buckets))
    assert not {"job", "image", "path", "key"} & set(metric.labels)


def test_a_worker_without_a_port_counts_nothing() -> None:
    from worker.metrics.page import make_meter
    from worker.settings import load_settings

    assert type(make_meter(load_settings({}))) is Meter
