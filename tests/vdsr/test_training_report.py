"""The report of a run: everything in one page, the figures of the log, and nothing that a name could smuggle in."""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_photos
from PIL import Image

from vdsr.data import Picture, image_paths, prepare
from vdsr.errors import VdsrError
from vdsr.model import VDSR, VDSRConfig
from vdsr.training.recipe import read_recipe
from vdsr.training.report import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text below each id or tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[list[tuple[str, str]], str]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes.get("id", "")))
        rows = self.rows.setdefault(next((name for kind, name in self.open if kind == "table"), ""), [])
        if tag == "tr":
            rows.append([])
        if tag in {"td", "th"}:
            rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((list(self.open), data))
        if any(tag in {"td", "th"} for tag, _ in self.open):
            table = next(name for tag, name in self.open if tag == "table")
            self.rows[table][-1][-1] += data

    def text(self, place: str) -> str:
        """Of all elements with this id or tag."""
        found = "".join(data for around, data in self.texts if any(place in pair for pair in around))
        return " ".join(found.split())

    def tags(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def image(self, alt: str) -> Image.Image:
        (found,) = [tag for tag in self.tags("img") if tag["alt"] == alt]
        kind, _, data = found["src"].partition(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert image.format == "PNG"
        assert (int(found["width"]), int(found["height"])) == image.size
        return image


def session(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "from_step": step,
        "began": "2026-01-02T03:04:05Z",
        "code": {"version": "0.1.0", "sha256": "abcdef0123456789" * 4},
        "device": "Some GPU",
        "threads": 3,
        "processes": 2,
        "bf16": True,
        "packages": {"torch": "2.99.0"},
        **changes,
    }


def row(step: int, psnr: dict[str, list[float]] | None = None, **changes: Any) -> dict[str, Any]:
    validation = {"psnr_y": psnr} if psnr else {}
    return {"step": step, "loss": 9.0 - step / 100, "learning_rate": 0.001, "seconds": 4830.0, **validation, **changes}


RECIPE = replace(read_recipe("best"), steps=400, warmup=10, scales=(2, 3, 4))
RECORD: dict[str, Any] = {
    "recipe": RECIPE.to_dict(),
    "version": "spring",
    "command": "vdsr train --data photos",
    "data": {"digest": "d1" * 32, "validation": "e2" * 32},
    "sessions": [session(0), session(150, device="Other GPU", bf16=False)],
}
ROWS = [
    row(100),
    row(200, {"2": [33.0, 32.25], "3": [30.0, 31.0], "4": [28.0, 29.0]}),
    row(300),
    row(400, {"2": [33.0, 36.5], "3": [30.0, 29.875], "4": [28.0, 30.125]}),
]


@pytest.fixture(scope="module")
def model() -> VDSR:
    torch.manual_seed(0)
    return VDSR(VDSRConfig(depth=3, channels=4))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    photos = make_photos(tmp_path_factory.mktemp("validation"), 4, size=(132, 120))
    return [prepare(path, RECIPE.scales) for path in image_paths(photos)]


@pytest.fixture(scope="module")
def html(model: VDSR, pictures: list[Picture]) -> str:
    return write_report(RECORD, ROWS, model, pictures)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_loads_nothing_from_elsewhere(html: str, page: Page) -> None:
    assert not {tag for tag, _ in page.elements} & {"link", "script", "iframe", "object", "embed", "base", "form"}
    targets = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "srcset", "href", "xlink:href", "data", "action", "poster"}
    ]
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in targets)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert html.count("url(") == html.count("url(#")


def test_the_table_gives_the_last_validation(page: Page) -> None:
    assert page.rows["result"] == [
        ["scale", "bicubic dB", "network dB", "gain dB"],
        ["×2", "33.00", "36.50", "+3.50"],
        ["×3", "30.00", "29.88", "−0.12"],
        ["×4", "28.00", "30.12", "+2.12"],
    ]
    assert "at step 400 on the central 256 × 256 pixels of 4 validation images" in page.text("measured")
    assert "no test set" in page.text("measured")


def test_the_summary_tells_the_whole_run(page: Page) -> None:
    assert page.text("summary") == (
        "Finished all 400 steps in 1 h 20 min on Some GPU, Other GPU. The network reaches a PSNR-Y of "
        "36.50 dB at ×2 (+3.50 dB over bicubic), 29.88 dB at ×3 (−0.12 dB over bicubic) and "
        "30.12 dB at ×4 (+2.12 dB over bicubic)."
    )


def test_a_stopped_run_says_how_far_it_came(model: VDSR) -> None:
    page = Page(write_report(RECORD, ROWS[:2], model, []))

    assert page.text("summary").startswith("Stopped at step 200 of 400 in 1 h 20 min")


def test_names_and_commands_are_never_markup(model: VDSR) -> None:
    evil = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>"
    record = {
        **RECORD,
        "version": evil,
        "command": evil,
        "recipe": {**RECORD["recipe"], "name": evil},
        "sessions": [session(0, device=evil)],
    }

    page = Page(write_report(record, ROWS, model, []))

    assert page.tags("script") == page.tags("img") == []
    assert page.text("h1") == page.text("command") == evil
    assert page.text("title") == f"{evil}: VDSR training report"
    assert ["name", evil] in page.rows["recipe"]
    assert page.rows["sessions"][1][2] == evil


def test_the_same_run_gives_the_same_bytes(html: str, model: VDSR, pictures: list[Picture]) -> None:
    assert write_report(RECORD, ROWS, model, pictures) == html


def test_a_machines_own_plot_settings_change_nothing(html: str, model: VDSR, pictures: list[Picture]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 33, "xtick.major.size": 20, "svg.fonttype": "path"}):
        assert write_report(RECORD, ROWS, model, pictures) == html
        assert matplotlib.rcParams["font.size"] == 33


def test_the_text_in_curves_is_text(page: Page) -> None:
    drawings = page.tags("svg")
    words = page.text("svg")

    assert [drawing["aria-labelledby"] for drawing in drawings] == ["loss", "psnr", "gain", "rate"]
    assert words.count("step") == 4
    assert all(word in words for word in ("×2", "×3", "×4", "bicubic", "PSNR-Y, dB", "learning rate"))


def test_ids_are_unique_though_the_page_has_several_drawings(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    used = [a["href"][1:] for tag, a in page.elements if tag == "use"]

    assert max(ids.values()) == 1
    assert used
    assert set(used) <= set(ids)


def test_curves_take_their_ink_from_the_page(html: str) -> None:
    assert "#123456" not in html
    assert "stroke: currentColor" in html
    assert "prefers-color-scheme: dark" in html


def test_the_papers_gain_is_told_as_of_another_set(page: Page, model: VDSR) -> None:
    note = "the paper's mean gain on Set5, other images (+3.87 dB at ×2, +3.27 dB at ×3, +2.93 dB at ×4"
    assert note in page.text("figure")
    assert "paper, on Set5" in page.text("svg")

    other = Page(write_report(RECORD, [row(400, {"8": [20.0, 21.0]})], model, []))
    assert "paper" not in other.text("svg") + other.text("figure")


def test_a_resumed_run_is_marked_where_it_went_on(page: Page) -> None:
    marked = [a["id"] for tag, a in page.elements if tag == "g" and "resumed-" in a.get("id", "")]

    assert marked == ["loss-resumed-150", "psnr-resumed-150", "gain-resumed-150", "rate-resumed-150"]
    assert page.text("resumed") == "Dotted vertical lines: the run was resumed at step 150."


def test_a_history_that_was_begun_anew_is_not_marked(model: VDSR) -> None:
    sessions = [session(0), session(300), session(0), session(50), session(50), session(100)]

    page = Page(write_report({**RECORD, "sessions": sessions}, ROWS, model, []))

    assert page.text("resumed") == "Dotted vertical lines: the run was resumed at step 50 and 100."
    assert len(page.rows["sessions"]) == 7


def test_recipe_command_data_and_sessions_are_told(page: Page) -> None:
    assert dict(page.rows["recipe"])["scales"] == "2, 3, 4"
    assert [key for key, _ in page.rows["recipe"]] == list(RECIPE.to_dict())
    assert page.text("command") == "vdsr train --data photos"
    assert page.rows["data"] == [
        ["validation images", "4"],
        ["digest of all images and their split", "d1" * 32],
        ["digest of validation images", "e2" * 32],
    ]
    assert page.rows["sessions"][1:] == [
        ["2026-01-02T03:04:05Z", "0", "Some GPU", "3", "2", "yes", "0.1.0 abcdef012345", "2.99.0"],
        ["2026-01-02T03:04:05Z", "150", "Other GPU", "3", "2", "no", "0.1.0 abcdef012345", "2.99.0"],
    ]


def test_a_run_without_any_row_has_a_page(model: VDSR, pictures: list[Picture]) -> None:
    page = Page(write_report({**RECORD, "sessions": [session(0)]}, [], model, pictures[:1]))

    assert page.text("summary") == "Stopped at step 0 of 400 on Some GPU."
    assert "result" not in page.rows
    assert page.tags("svg") == []


def test_a_run_without_a_validation_has_its_other_curves(model: VDSR) -> None:
    page = Page(write_report(RECORD, [row(100), row(200)], model, []))

    assert [drawing["aria-labelledby"] for drawing in page.tags("svg")] == ["loss", "rate"]
    assert "The run has not come to a validation yet." in page.text("section")


def test_a_single_row_is_a_page_with_every_curve(model: VDSR) -> None:
    page = Page(write_report(RECORD, ROWS[-1:], model, []))

    assert len(page.tags("svg")) == 4
    assert page.rows["result"][1] == ["×2", "33.00", "36.50", "+3.50"]


def test_pictures_that_bicubic_restores_perfectly_are_told_as_such(model: VDSR) -> None:
    flat = np.full((36, 48), 30000, np.uint16)
    picture = Picture(np.stack([flat] * 4), (2, 3, 4), flat.shape, "0" * 64)
    perfect = {scale: [float("inf"), float("inf")] for scale in "234"}

    page = Page(write_report(RECORD, [row(400, perfect)], silent(model), [picture]))

    assert page.rows["result"][1] == ["×2", "∞", "∞", "+0.00"]
    assert "bicubic ∞ dB" in page.text("figure")


def test_samples_are_the_worst_the_median_and_the_best_at_each_scale(page: Page) -> None:
    ranks = [heading.split(":")[0] for heading in page.text("h4").split(" dB") if heading]

    assert [rank.strip() for rank in ranks] == ["worst", "median", "best"] * 3
    assert [tag["alt"] for tag in page.tags("img")[:3]] == [
        "×2, worst image: bicubic",
        "×2, worst image: network",
        "×2, worst image: truth",
    ]
    assert len(page.tags("img")) == 27
    assert {page.image(tag["alt"]).size for tag in page.tags("img")} == {(96, 96)}
    assert {page.image(tag["alt"]).mode for tag in page.tags("img")} == {"L"}


@pytest.mark.parametrize(("count", "ranks"), [(0, []), (1, ["only"]), (2, ["worst", "best"])])
def test_no_picture_is_shown_twice_at_a_scale(
    model: VDSR, pictures: list[Picture], count: int, ranks: list[str]
) -> None:
    page = Page(write_report(RECORD, ROWS, model, pictures[:count]))

    assert [tag["alt"] for tag in page.tags("img") if tag["alt"].endswith("truth")] == [
        f"×{scale}, {rank} image: truth" for scale in (2, 3, 4) for rank in ranks
    ]


def test_a_picture_smaller_than_a_crop_is_shown_whole(tmp_path: Path, model: VDSR) -> None:
    (path,) = image_paths(make_photos(tmp_path, 1, size=(50, 37)))
    picture = prepare(path, RECIPE.scales)

    page = Page(write_report(RECORD, ROWS, model, [picture]))

    shown = np.asarray(page.image("×4, only image: truth"), float)
    expected = np.clip((picture.hr / 257 - 16) * 255 / 219, 0, 255)  # studio range to black and white
    assert shown.shape == (36, 48)
    assert np.abs(shown - expected).max() < 0.51


def test_a_network_that_adds_nothing_shows_what_bicubic_shows(model: VDSR, pictures: list[Picture]) -> None:
    page = Page(write_report(RECORD, ROWS, silent(model), pictures))

    assert page.text("h4").count("+0.00 dB") == 9
    for scale in (2, 3, 4):
        low, restored, truth = (
            page.image(f"×{scale}, best image: {name}").tobytes() for name in ("bicubic", "network", "truth")
        )
        assert low == restored != truth


def test_a_crop_is_restored_as_in_its_whole_picture(model: VDSR, pictures: list[Picture]) -> None:
    from vdsr.training.report import _restored

    crop = (slice(10, 50), slice(80, 132))
    whole = (slice(0, 120), slice(0, 132))

    part = _restored(model, pictures[0], 2, crop)

    # bf16, where the CPU has it, rounds in an order that depends on the size.
    assert np.abs(part - _restored(model, pictures[0], 2, whole)[crop]).max() < 0.01


def test_the_crop_is_where_bicubic_loses_most(model: VDSR) -> None:
    low = np.full((300, 420), 20000, np.uint16)
    high = low.copy()
    high[150:160, 200:210] = 40000
    picture = Picture(np.stack([high, low]), (2,), low.shape, "0" * 64)

    shown = np.asarray(Page(write_report(RECORD, [], silent(model), [picture])).image("×2, only image: truth"))

    assert int((shown > shown.min()).sum()) == 100


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, model: VDSR) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # how Python itself marks what cannot be imported

    with pytest.raises(VdsrError, match=r"needs matplotlib and jinja2: pip install 'vdsr\[train\]'"):
        write_report(RECORD, ROWS, model, [])


def silent(model: VDSR) -> VDSR:
    """The same network with a residual of nothing."""
    quiet = VDSR(model.config)
    with torch.no_grad():
        quiet.kernels[-1].zero_()
    return quiet
