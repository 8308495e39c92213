"""Do outputs have the size that was asked for, exactly, and is nothing made smaller?"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from helpers import pipeline, run_line
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vdsr.errors import ImageUnsupported
from vdsr.resize import scaled_size
from worker.client import draft
from worker.errors import UsageError
from worker.forecast import forecast
from worker.jobs import Options
from worker.names import check_template
from worker.report.files import command
from worker.settings import load_settings
from worker.sizing import expected_pixels, large_enough, most_scale, scale_for

sides = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(width=3840), (2560, 3840)),
        (Options(height=2160), (2160, 3240)),
        (Options(width=3840, height=2160), (2160, 3240)),
        (Options(width=3840, height=9000), (2560, 3840)),
        (Options(width=3840, max_megapixels=2), (1154, 1731)),
        (Options(scale=4, max_megapixels=1000), (1600, 2400)),
        (Options(scale=4, max_megapixels=1), (816, 1224)),
        (Options(width=601), (401, 601)),
    ],
)
def test_600_by_400_becomes(options: Options, expected: tuple[int, int]) -> None:
    scale = scale_for(options, (400, 600))
    assert scale is not None
    assert scaled_size((400, 600), scale) == expected


@given(sides, sides, sides)
def test_a_width_is_met_to_the_pixel(height: int, width: int, wanted: int) -> None:
    options = Options(width=wanted)
    if wanted <= width:
        assert scale_for(options, (height, width)) is None
    elif wanted <= 16 * width:
        scale = scale_for(options, (height, width))
        assert scale is not None
        assert scaled_size((height, width), scale) == (math.ceil(round(height * wanted / width, 6)), wanted)


@given(sides, sides, sides, sides)
def test_a_box_is_filled_one_way_and_kept_the_other(height: int, width: int, high: int, wide: int) -> None:
    if (scale := _factor(Options(width=wide, height=high), (height, width))) is not None:
        made = scaled_size((height, width), scale)
        assert made[0] <= high
        assert made[1] <= wide
        assert made[0] == high or made[1] == wide


@given(sides, sides, st.floats(0.001, 60))
def test_no_more_megapixels_come_out_than_allowed_and_hardly_fewer(height: int, width: int, most: float) -> None:
    if (scale := _factor(Options(scale=16, max_megapixels=most), (height, width))) is not None:
        made = scaled_size((height, width), scale)
        assert math.prod(made) <= most * 1e6
        if scale < 16:
            assert (made[0] + 2) * (made[1] + 2) * (1 + 2 / max(made)) > most * 1e6


def _factor(options: Options, size: tuple[int, int]) -> float | None:
    try:
        return scale_for(options, size)
    except ImageUnsupported:
        return None


@pytest.mark.parametrize(
    "options",
    [Options(width=600), Options(height=300), Options(width=9000, height=400), Options(max_megapixels=0.24)],
)
def test_what_would_not_become_larger_is_told_from_the_rest(options: Options) -> None:
    assert scale_for(options, (400, 600)) is None
    assert large_enough(options, (400, 600)).startswith("it is 600 x 400 already, and would not become larger by ")


def test_a_scale_of_one_is_done_as_asked_and_never_turns_into_less() -> None:
    assert scale_for(Options(scale=1), (400, 600)) == 1
    assert scale_for(Options(scale=1, max_megapixels=0.24), (400, 600)) == 1
    assert scale_for(Options(scale=1, max_megapixels=0.23), (400, 600)) is None


def test_more_than_sixteen_times_is_refused_with_the_factor() -> None:
    with pytest.raises(ImageUnsupported, match=r"100 x 50 would have to become 38\.4 times as large for 3,840 px wide"):
        scale_for(Options(width=3840), (50, 100))


def test_memory_is_reckoned_for_either_way_that_exif_may_turn_the_picture() -> None:
    assert most_scale(Options(width=1200), (600, 400)) == 3
    assert most_scale(Options(width=1200), (400, 600)) == 3
    assert most_scale(Options(width=300), (400, 600)) == 1


def test_what_is_expected_where_no_image_was_looked_at() -> None:
    assert expected_pixels(Options(scale=3), 100) == 900
    assert expected_pixels(Options(width=4000), 100) == 12e6
    assert expected_pixels(Options(height=3000), 100) == 12e6
    assert expected_pixels(Options(width=4000, height=1000, max_megapixels=2), 100) == 2e6


@pytest.mark.parametrize(
    ("options", "target", "label"),
    [
        (Options(), "x2", "x2"),
        (Options(scale=1.5, max_megapixels=50), "x1.5 up to 50 MP", "x1.5"),
        (Options(width=3840), "3,840 px wide", "w3840"),
        (Options(height=2160), "2,160 px high", "h2160"),
        (Options(width=3840, height=2160), "within 3,840 x 2,160 px", "3840x2160"),
    ],
)
def test_a_size_is_told_and_stands_in_names(options: Options, target: str, label: str) -> None:
    assert (options.target, options.label) == (target, label)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"height": 200_001}, {"max_megapixels": 0}])
def test_sizes_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="it must be"):
        Options(**wrong)


def test_a_template_with_the_scale_is_refused_where_each_image_has_its_own() -> None:
    check_template("{name}-x{scale}.{format}")
    with pytest.raises(UsageError, match=r"has \{scale\}"):
        check_template("{name}-x{scale}.{format}", sized=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small, a large and a turned picture."""
    source = tmp_path / "in"
    source.mkdir()
    Image.new("RGB", (40, 30), "teal").save(source / "small.png")
    Image.new("RGB", (90, 60), "teal").save(source / "large.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new("RGB", (30, 20), "teal").save(source / "turned.jpg", exif=turned)
    return source


def test_the_line_makes_them_so_wide_and_skips_what_is_large_enough(folder: Path) -> None:
    line = pipeline(folder, width=80)
    rows = {row.key: row for row in run_line(line, ["large.png", "small.png", "turned.jpg"])}
    assert (rows["small.png"].outcome, rows["small.png"].width, rows["small.png"].height) == ("done", 80, 60)
    assert (rows["turned.jpg"].width, rows["turned.jpg"].height) == (80, 120)
    assert (rows["large.png"].outcome, rows["large.png"].code) == ("skipped", "large_enough")
    assert "90 x 60 already" in (rows["large.png"].message or "")
    assert not line.target.exists("large.png")


def test_another_size_is_another_output_and_no_size_is_what_it_was_before(folder: Path) -> None:
    one, other = (pipeline(folder, width=width).job.made_of("a", "1", "sha") for width in (80, 81))
    assert one != other
    known = pipeline(folder).job.made_of("a", "1", "sha")
    assert known == pipeline(folder, width=None, max_megapixels=None).job.made_of("a", "1", "sha")


def test_a_forecast_reckons_with_sizes(folder: Path) -> None:
    settings = load_settings({})
    job = draft(str(folder), None, Options(width=80), settings)
    assert job.destination == f"{folder}-w80"
    found = forecast(job, settings, None)
    assert (found.todo, found.sampled, found.sample_large) == (3, 3, 1)
    assert found.output_pixels == pytest.approx(3 * 80 * 60)
    assert "--width 80" in command(job)
    assert "--scale" not in command(job)
    capped = draft(str(folder), None, Options(scale=4, max_megapixels=0.01), settings)
    assert "--scale 4 --max-mp 0.01" in command(capped).replace("0.01 ", "0.01 ")
