"""Does a report say what the results say? The page is opened in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Service, make_photos, vdsr
from PIL import Image

from vdsr.resize import bicubic
from worker.errors import NotFound
from worker.jobs import Job, Model, Options, Outcome, State
from worker.parts import Part, Parts
from worker.report.figures import SLOTS, Distribution, Timeline, gather
from worker.report.files import command, summary, write_report
from worker.report.page import histogram, render
from worker.report.samples import SIDE, most_detailed, sample
from worker.settings import load_settings
from worker.uris import open_storage

SETTINGS = load_settings({})
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> & \u202eevil'


def row(key: str, gain: float | None = None, **more: Any) -> Outcome:
    psnr = None if gain is None else {"kind": "self-degradation", "bicubic": 30.0, "vdsr": 30 + gain, "gain": gain}
    defaults = {"psnr": psnr, "model": "a" * 64, "width": 100, "height": 50, "worker": "one@host", "finished": 1000.0}
    return Outcome(key, key, "done", 10, **{**defaults, **more})


def failed(key: str, code: str = "unreadable", message: str = "broken") -> Outcome:
    return Outcome(key, key, "failed", 10, code=code, message=message, worker="one@host", finished=1000.0)


def job(folder: Path, **more: Any) -> Job:
    fields = {"created": 990.0, **more}
    return Job("20261123-000000-abcde", f"{folder}/in", f"{folder}/out", Options(), Model("v1", "a" * 64), **fields)


def test_quantiles_are_those_of_the_values() -> None:
    distribution = Distribution()
    values = np.random.default_rng(0).normal(2, 1, 999).round(2)
    for value in values:
        distribution.add(float(value))

    assert distribution.mean == pytest.approx(values.mean())
    for share in (0.05, 0.5, 0.95):
        assert distribution.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    bins = distribution.bins(0.25)
    counts, _ = np.histogram(values, [edge - 1e-9 for edge, _ in bins] + [bins[-1][0] + 0.25 - 1e-9])
    assert [n for _, n in bins] == counts.tolist()
    assert Distribution().quantile(0.5) is None
    assert Distribution().mean is None


def test_a_timeline_loses_no_image_however_long_it_grows() -> None:
    timeline = Timeline()
    moments = np.random.default_rng(1).uniform(0, 90_000, 2000)
    for n, moment in enumerate(moments):
        timeline.add(f"w{n % 3}", "m", 1e9 + moment)

    assert sum(sum(counts.values()) for counts in timeline.rows.values()) == 2000
    assert timeline.slots <= SLOTS
    assert timeline.first is not None
    assert timeline.first <= 1e9 + moments.min()
    wanted = (1e9 + moments[::3] - timeline.first) // timeline.slot_s
    slots, counts = np.unique(wanted, return_counts=True)
    assert dict(timeline.rows["w0", "m"]) == dict(zip(slots, counts, strict=True))


def test_a_timeline_of_a_large_fleet_costs_no_more_an_image() -> None:
    timeline, before = Timeline(), time.process_time()

    for n in range(30_000):
        timeline.add(f"w{n % 300}", "m", 1.7e9 + n)

    assert time.process_time() - before < 5  # looking at every slot of every worker each time: a minute
    assert sum(counts.total() for counts in timeline.rows.values()) == 30_000


def test_a_failure_that_was_mended_does_not_count() -> None:
    rows = [failed("a"), failed("b", "not_found"), row("c", 1.0), row("a", 2.0), failed("b", "access_denied")]
    seen: list[str] = []

    figures = gather(rows, lambda each: seen.append(each.key))

    assert figures.outcomes == {"done": 2, "failed": 1}
    assert figures.failures == {"access_denied": 1}
    assert sorted(seen) == ["a", "b", "c"]


def test_the_extremes_are_the_best_and_the_worst() -> None:
    gains = np.random.default_rng(2).permutation(np.arange(500) / 100)
    figures = gather(row(f"{gain:.2f}", float(gain)) for gain in gains)

    assert [each.key for each in figures.best] == [f"{(499 - n) / 100:.2f}" for n in range(10)]
    assert [each.key for each in figures.worst] == [f"{n / 100:.2f}" for n in range(10)]
    few = gather(row(f"{n}", float(n)) for n in range(12))
    assert len(few.worst) == 10
    assert [each.key for each in few.best] == ["11", "10"]  # each is shown once


def test_images_without_a_figure_are_counted_with_their_reason() -> None:
    nothing = {"bicubic": None, "vdsr": None, "gain": None, "reason": "too small"}
    exact = {"bicubic": 40.0, "vdsr": "inf", "gain": "inf", "reason": None}
    both = {"bicubic": "inf", "vdsr": 50.0, "gain": "-inf", "reason": None}
    figures = gather([row("a", psnr=nothing), row("b", psnr=exact), row("c", psnr=both), row("d", 1.0)])

    assert figures.exact == 1
    assert figures.without == {"too small": 1, "bicubic is exact": 1}
    assert figures.psnr["gain"].n == 1


def test_outputs_that_do_not_agree_with_their_inputs_are_told_by_the_lowest(tmp_path: Path) -> None:
    def agreeing(key: str, figure: float | str | None) -> Outcome:
        psnr = {"kind": "self-degradation", "bicubic": 30.0, "vdsr": 31.0, "gain": 1.0, "lr_consistency": figure}
        return row(key, psnr=psnr)

    figures = gather([row("older", 1.0), agreeing("a", 50.0), agreeing("<b>", 12.5), agreeing("c", "inf")])
    facts = summary(job(tmp_path), State.COMPLETED, figures)

    assert facts["lr_consistency"]["images"] == 2
    assert (facts["lr_consistency"]["lowest"], facts["lr_consistency"]["lowest_key"]) == (12.5, "<b>")
    page = render(facts, figures, {}, chunks=1)
    assert "the lowest is 12.50 dB, of <code>&lt;b&gt;</code>" in page


def test_the_command_of_a_job_is_the_one_that_asks_for_it_again(tmp_path: Path) -> None:
    options = Options(scale=3, format="png", include=("*.jpg", "a b"), recursive=False, score=False, self_ensemble=True)
    job = Job("j", "/in", "/out dir", options, Model("v1", "a" * 64))

    assert command(job) == (
        "vdsr submit /in '/out dir' --scale 3 --format png --no-recursive --include '*.jpg' --include 'a b' "
        "--no-score --self-ensemble --model v1"
    )


def test_a_crop_shows_bicubic_and_output_of_the_same_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lr = np.full((600, 700, 3), 90, np.uint8)
    lr[300:420, 100:250] = rng.integers(60, 120, (120, 150, 3))
    sr = np.clip(np.round(bicubic(lr.transpose(2, 0, 1).astype(float), scale=2)), 0, 255).astype(np.uint8)
    for name, pixels in (("in", lr), ("out", sr.transpose(1, 2, 0))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    source, target = (open_storage(str(tmp_path / name), SETTINGS) for name in ("in", "out"))

    shown = sample(row("a.png", 1.0, width=1400, height=1200), job(tmp_path), SETTINGS, source=source, target=target)

    assert not shown.missing
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), int)
        for uri in (shown.before, shown.after)
    )
    assert before.shape == after.shape == (SIDE, SIDE, 3)
    assert np.abs(before - after).mean() < 2  # the same place; only WebP's loss is between them
    assert before.std() > 3  # where the detail is
    assert most_detailed(lr, 240) == (pytest.approx(240, abs=61), pytest.approx(55, abs=46))


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.37, 4.0])
@pytest.mark.parametrize("shape", [(3, 5, 3), (90, 700, 4), (700, 90)])
def test_any_shape_and_scale_has_a_crop(tmp_path: Path, shape: tuple[int, ...], scale: float) -> None:
    rng = np.random.default_rng(4)
    size = tuple(int(np.ceil(round(n * scale, 6))) for n in shape[:2])
    for name, dims in (("in", shape), ("out", (*size, *shape[2:]))):
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 256, dims, dtype=np.uint8)).save(tmp_path / name / "a.png")
    wanted = Job("j", str(tmp_path / "in"), str(tmp_path / "out"), Options(scale=scale), Model("v", "a" * 64))
    source, target = (open_storage(str(tmp_path / name), SETTINGS) for name in ("in", "out"))

    shown = sample(row("a.png", 1.0), wanted, SETTINGS, source=source, target=target)

    assert not shown.missing
    assert (shown.height, shown.width) == tuple(min(SIDE, n) for n in size)


def test_a_picture_that_is_gone_changed_or_huge_is_told(tmp_path: Path) -> None:
    for name, size in (("in", (20, 10)), ("out", (41, 20))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
    source, target = (open_storage(str(tmp_path / name), SETTINGS) for name in ("in", "out"))

    def missing(each: Outcome) -> str:
        return sample(each, job(tmp_path), SETTINGS, source=source, target=target).missing

    assert "no longer those" in missing(row("a.png", 1.0))
    assert "No such file" in missing(row("b.png", 1.0))
    assert "larger than 64" in missing(row("a.png", 1.0, width=20_000, height=10_000))


def test_the_page_stays_small_however_large_the_job(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    gains = rng.normal(2, 1, 20_000)
    rows = (
        failed(f"{n}", f"code_{n % 30}", "x" * 200)
        if n % 50 == 0
        else row(f"{n}", float(gain), worker=f"w{n % 900}@host", finished=1000.0 + n, notes=(f"first of {n} frames",))
        for n, gain in enumerate(gains)
    )
    figures = gather(rows)
    facts = summary(job(tmp_path), State.COMPLETED, figures)

    page = render(facts, figures, {}, chunks=1000)

    assert len(page) < 2_000_000  # forty crops of at most 150 kB come on top, in base64: 8 MB
    assert "19,600" in page
    assert facts["notes"] == {"first of N frames": 19_600}
    drawn = histogram(figures)
    assert drawn is not None
    assert sum(int(bar.label.rpartition(": ")[2].replace(",", "")) for bar in drawn["bars"]) == 19_600


def test_a_crop_of_noise_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for name, side in (("in", 300), ("out", 600)):
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / name / "a.png")
    source, target = (open_storage(str(tmp_path / name), SETTINGS) for name in ("in", "out"))

    shown = sample(row("a.png", 1.0), job(tmp_path), SETTINGS, source=source, target=target)

    assert 10_000 < len(shown.before) < 200_100
    assert 10_000 < len(shown.after) < 200_100


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report of two pictures and hostile names."""
    make_photos(tmp_path / "in", 2, size=(300, 200))
    names = ["0000.jpg", "sub/0001.png"]
    for name in names:
        output = tmp_path / "out" / name
        output.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(tmp_path / "in" / name) as image:
            image.resize((600, 400)).save(output)
    wanted = job(tmp_path)
    parts = Parts(wanted, SETTINGS)
    parts.write_job()
    rows = [row(name, 1.0 + n, width=600, height=400) for n, name in enumerate(names)]
    rows.append(failed(HOSTILE, message=HOSTILE))
    rows.append(row(f"=HYPERLINK({HOSTILE})", 0.5, worker=HOSTILE, notes=(HOSTILE,), model=HOSTILE))
    parts.add_manifest(0, Part((), 0, "", last=True))
    parts.add_results(0, rows)
    return write_report(parts, State.COMPLETED, tmp_path / "report" / "report.html", SETTINGS)


def _opened(browser: Any, page: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and what should stay empty: errors, console lines, requests, dialogs."""
    events: list[str] = []
    opened = browser.new_context(**context).new_page()
    opened.on("console", lambda message: events.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: events.append(f"error: {error}"))
    opened.on("dialog", lambda dialog: (events.append("dialog"), dialog.dismiss()))
    opened.on("request", lambda r: events.append(r.url) if not r.url.startswith(("data:", page.as_uri())) else None)
    opened.goto(page.as_uri())
    return opened, events


def test_the_page_runs_nothing_of_hostile_names_and_asks_for_nothing(browser: Any, report: Path) -> None:
    page, events = _opened(browser, report)

    assert page.title() == "20261123-000000-abcde: VDSR job report"
    assert HOSTILE in page.locator("#failures").inner_text()
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 4
    assert page.locator("#again").inner_text() == "vdsr retry 20261123-000000-abcde"
    assert all(page.evaluate("[...document.images].map(image => image.naturalWidth > 0)"))
    assert events == []


def test_the_line_between_before_and_after_follows_mouse_and_keys(browser: Any, report: Path) -> None:
    page, events = _opened(browser, report)
    view = page.locator(".view").first
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40)
    page.mouse.up()
    assert view.get_attribute("aria-valuenow") == "25"
    page.mouse.move(box["x"] + box["width"] / 1.2, box["y"] + 40)  # let go
    assert view.get_attribute("aria-valuenow") == "25"

    view.focus()
    page.keyboard.press("ArrowRight")
    assert view.get_attribute("aria-valuenow") == "27"
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowRight")
    layers = "[...arguments[0].querySelectorAll('img')].map(i => getComputedStyle(i).transform)"
    transforms = view.evaluate(f"(...arguments) => {layers}")
    assert transforms[0] == transforms[1]  # before and after move as one
    assert transforms[0].startswith("matrix(1.5, 0, 0, 1.5, -")
    page.keyboard.press("0")
    assert view.evaluate(f"(...arguments) => {layers}")[0] == "matrix(1, 0, 0, 1, 0, 0)"
    page.locator("[data-zoom=in]").first.click()
    assert "zoomed" in view.get_attribute("class")
    assert events == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_either_mode(browser: Any, report: Path, scheme: str) -> None:
    phone = {"width": 360, "height": 740}
    page, events = _opened(browser, report, viewport=phone, color_scheme=scheme, has_touch=True, is_mobile=True)

    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert events == []


def test_tables_beside_the_page_hold_every_image_and_no_formula(report: Path) -> None:
    with (report.parent / "results.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    with (report.parent / "failed.csv").open(newline="", encoding="utf-8") as lines:
        failures = list(csv.DictReader(lines))
    facts = json.loads((report.parent / "report.json").read_text("utf-8"))

    assert [each["outcome"] for each in rows] == ["done", "done", "done", "failed"]
    assert (rows[0]["key"], rows[0]["gain"], rows[0]["width"]) == ("0000.jpg", "1.0", "600")
    assert rows[2]["key"].startswith("'=HYPERLINK")
    assert [(each["key"], each["code"]) for each in failures] == [(HOSTILE, "unreadable")]
    assert facts["images"] == {"done": 3, "failed": 1, "skipped": 0}
    assert facts["psnr"]["gain"] == {"mean": 1.1667, "p5": 0.5, "median": 1.0, "p95": 2.0}
    assert facts["failures"] == {"unreadable": 1}


@pytest.mark.redis
def test_a_job_through_the_queue_has_a_report_with_its_workers(service: Service, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    summary_of_job = service.run(photos)
    parts, state = Parts.at(f"{photos}-x2", summary_of_job["id"], service.settings)

    page = write_report(parts, state, tmp_path / "report.html", service.settings)

    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert facts["images"] == {"done": 30, "failed": 1, "skipped": 0}
    assert facts["psnr"]["gain"]["mean"] == pytest.approx(summary_of_job["psnr"]["gain"], abs=1e-3)
    assert facts["seconds_run"] > 0
    assert "one@" in page.read_text("utf-8") or "two@" in page.read_text("utf-8")


@pytest.mark.parametrize(("place", "said"), [("no/such.html", "cannot write"), ("taken", "is a directory")])
def test_a_page_that_cannot_be_written_is_one_clear_line(report: Path, tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "no").write_text("a file where a folder is needed")
    (tmp_path / "taken").mkdir()

    result = vdsr(dict(os.environ), "report", tmp_path / "out", "-o", tmp_path / place, "--no-pictures")

    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"job\.json"):
        Parts.at(str(tmp_path), "20261123-000000-abcde", SETTINGS)
