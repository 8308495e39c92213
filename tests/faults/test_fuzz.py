"""Damaged files cost a worker nothing but a message; and the fuzzer that says so does notice."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import fuzz

from vdsr.errors import ImageUnsupported
from worker.formats import FORMATS
from worker.images import decode

BAD = """
import ctypes, time

def crash(data):
    return str(ctypes.string_at(1)) if len(data) % 3 == 0 else "picture"

def hang(data):
    time.sleep(600 if len(data) % 3 == 0 else 0)
    return "picture"

def hog(data):
    return str(len(bytearray(1 << 30))) if len(data) % 3 == 0 else "picture"

def bug(data):
    raise KeyError("a fault of ours") if len(data) % 3 == 0 else ValueError("another")
"""


def test_three_hundred_damaged_files_give_pictures_or_image_errors() -> None:
    report = fuzz.fuzz(300, seed=7)

    assert report.findings == []
    assert sum(report.outcomes.values()) == 300
    assert {outcome for _, outcome in report.outcomes} >= {"picture", "truncated", "unreadable"}


@pytest.mark.faults
def test_ten_thousand_damaged_files_give_pictures_or_image_errors() -> None:
    report = fuzz.fuzz(10_000, seed=0)

    assert report.findings == []
    assert {name for name, outcome in report.outcomes if outcome == "picture"} == {
        *("avif", "bmp", "gif", "heic", "jpg", "png", "tif", "webp")
    }


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("crash", "the process died: SIGSEGV"),
        ("hang", "no result in 2 s"),
        ("hog", "MemoryError: "),
        ("bug", "KeyError: 'a fault of ours'"),
    ],
)
def test_a_crash_a_hang_a_hog_and_a_bug_are_found_and_attributed(
    function: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    guilty = [number for number in range(6) if len(fuzz.case_of(4, number)[1]) % 3 == 0]
    assert 0 < len(guilty) < 6

    limit = 2 if function == "hang" else 20
    report = fuzz.fuzz(6, seed=4, target=f"bad:{function}", time_limit_s=limit)

    found = {finding.case: finding.what for finding in report.findings}
    assert [number for number in found if found[number] == said] == guilty
    assert sum(report.outcomes.values()) == 6


def test_a_case_is_the_same_bytes_every_time_and_others_are_others() -> None:
    assert fuzz.case_of(0, 5) == fuzz.case_of(0, 5)
    assert len({fuzz.case_of(seed, number)[1] for seed in (0, 1) for number in range(100)}) > 190


def test_the_pictures_that_are_damaged_are_sound_and_of_every_format() -> None:
    formats = set()
    for path in sorted(fuzz.SEEDS.iterdir()):
        if path.name == "cmyk.jpg":
            with pytest.raises(ImageUnsupported):
                decode(path.read_bytes(), max_pixels=10_000)
        else:
            formats.add(decode(path.read_bytes(), max_pixels=10_000).format)
    assert formats == set(FORMATS)
