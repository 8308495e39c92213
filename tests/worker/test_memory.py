"""Pictures are let in as far as their memory fits, in order, and a worker stays within its budget."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line, wait_until
from PIL import Image

from vdsr.errors import ImageNeedsMemory
from worker import memory
from worker.errors import UsageError
from worker.images import Header
from worker.jobs import Image as JobImage
from worker.memory import Admission, Turn, TurnedAway, budget_bytes, needed_bytes
from worker.settings import load_settings

ROOT = Path(__file__).parents[2]


def entering(turn: Turn, need: int) -> threading.Thread:
    thread = threading.Thread(target=turn.enter, args=(need,), daemon=True)
    thread.start()
    return thread


def test_what_fits_goes_in_at_once() -> None:
    admission = Admission(10)
    for need in (3, 3, 4):
        admission.draw().enter(need)
    assert admission.used == 10


def test_what_does_not_fit_waits_until_enough_is_given_back() -> None:
    admission = Admission(10)
    first, second = admission.draw(), admission.draw()
    first.enter(6)
    waiting = entering(second, 5)
    time.sleep(0.05)
    assert waiting.is_alive()
    first.leave()
    waiting.join(5)
    assert admission.used == 5


def test_a_small_one_does_not_overtake_a_large_one_that_waits() -> None:
    admission = Admission(10)
    first, large, small = (admission.draw() for _ in range(3))
    first.enter(6)
    threads = [entering(small, 1), entering(large, 10)]
    time.sleep(0.05)
    assert admission.used == 6
    first.leave()
    threads[1].join(5)
    assert admission.used == 10
    large.leave()
    threads[0].join(5)
    assert admission.used == 1


def test_one_that_leaves_without_having_entered_is_not_waited_for() -> None:
    admission = Admission(10)
    failed, second = admission.draw(), admission.draw()
    waiting = entering(second, 1)
    failed.leave()
    waiting.join(5)
    assert admission.used == 1


def test_leaving_twice_gives_back_once() -> None:
    admission = Admission(10)
    first, second = admission.draw(), admission.draw()
    first.enter(2)
    second.enter(3)
    first.leave()
    first.leave()
    assert admission.used == 3


def test_what_never_fits_is_refused_with_both_figures_and_the_setting() -> None:
    with pytest.raises(ImageNeedsMemory, match=r"2\.73 GiB .* budget of 1\.73 GiB; .* VDSR_MEMORY_BUDGET") as caught:
        Admission(1 << 30).draw().enter(2 << 30)
    assert caught.value.code == "too_large"


def test_who_waits_is_turned_away_at_the_end() -> None:
    admission = Admission(1)
    admission.draw().enter(1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(admission.draw().enter, 1)
        admission.close()
        with pytest.raises(TurnedAway):
            waiting.result(5)


@pytest.mark.parametrize(("text", "size"), [("2147483648", 2 << 30), ("4G", 4 << 30), ("1536 MiB", 3 << 29)])
def test_the_budget_is_a_size(text: str, size: int) -> None:
    assert load_settings({"VDSR_MEMORY_BUDGET": text}).memory_budget == size


@pytest.mark.parametrize(("text", "message"), [("lots", "such as 512M or 4G"), ("512M", "at least 1G")])
def test_an_unusable_budget_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings({"VDSR_MEMORY_BUDGET": text})


def test_without_a_setting_the_budget_is_half_of_what_the_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("4294967296\n")
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "memory.max", tmp_path / "no such file"))
    assert budget_bytes(load_settings({})) == (2 << 30) - memory.PROCESS_BYTES
    (tmp_path / "memory.max").write_text("max\n")
    assert budget_bytes(load_settings({})) > (1 << 29)


def test_a_picture_of_200_megapixels_fits_into_two_gibibytes() -> None:
    header = Header("JPEG", 10_000, 5_000, 3)
    budget = budget_bytes(load_settings({"VDSR_MEMORY_BUDGET": "2G"}))
    assert needed_bytes(header, 2, "PNG", reference=False) < budget
    assert needed_bytes(header, 2, "TIFF", reference=False) > budget


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for n in range(count):
        Image.new("RGB", (24, 16), (n, 0, 0)).save(folder / f"{n:05d}.png")
    return folder


def test_an_image_over_the_budget_fails_alone(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 2)
    Image.new("RGB", (9000, 9000)).save(photos / "large.png")
    rows = run_line(pipeline(photos, budget="1G", score=False), ["00000.png", "large.png", "00001.png"])
    assert [(row.outcome, row.code) for row in rows] == [("done", None), ("failed", "too_large"), ("done", None)]
    assert "VDSR_MEMORY_BUDGET" in str(rows[1].message)


def test_many_images_go_through_a_budget_of_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "photos", 25)
    (photos / "00003.png").write_bytes(b"broken")
    line = pipeline(photos, budget="1G", score=False)
    need = needed_bytes(Header("PNG", 24, 16, 3), 2, "PNG", reference=False)
    monkeypatch.setattr("worker.pipeline.budget_bytes", lambda settings: need)
    rows = run_line(line, [f"{n:05d}.png" for n in range(25)])
    assert [row.outcome for row in rows] == ["done"] * 3 + ["failed"] + ["done"] * 21


def test_a_run_that_is_given_up_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_photos(tmp_path / "photos", 25)
    line = pipeline(photos, budget="1G", score=False)
    need = needed_bytes(Header("PNG", 24, 16, 3), 2, "PNG", reference=False)
    monkeypatch.setattr("worker.pipeline.budget_bytes", lambda settings: need)
    images = [(n, JobImage(f"{n:05d}.png", 1, "", f"{n:05d}.png", None)) for n in range(25)]
    rows = line.run(images, on_start=lambda n: None, on_tile=lambda: None)
    next(rows)
    rows.close()  # waits for its threads
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith(("load", "store"))], 10)


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from helpers import pipeline, run_line
line = pipeline(Path(sys.argv[1]), budget="1G", score=False)
class Free:
    halo, name, exact, redone = 80, "none", True, 0
    def stream(self, height, width, on_tile):
        class Stream:
            push = staticmethod(np.zeros_like)
        return Stream()
line.upscaler.engine = Free()
run_line(line, ["small.png"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
(row,) = run_line(line, [sys.argv[2]])
assert row.outcome == "done", row
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before)
"""
"""A process of its own: what one picture adds to the largest memory it ever had. Without the network, which
PROCESS_BYTES holds."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["large.png", "large.jpg", "large.tif", "large.bmp", "large.webp", "gray.png", "alpha.png"]
)
def test_a_picture_takes_no_more_than_was_reckoned(tmp_path: Path, name: str) -> None:
    photo = Image.open(ROOT / "examples/photos/rocket.jpg")
    width, height = size = 2500, 2000
    photo = photo.resize(size).convert("L" if name.startswith("gray") else "RGB")
    if name.startswith("alpha"):
        hidden = np.zeros((height, width), np.uint8)
        hidden[-9:, -9:] = 255
        photo.putalpha(Image.fromarray(hidden))
    photo.save(tmp_path / name)
    photo.resize((16, 16)).save(tmp_path / "small.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path), name]
    paths = f"{ROOT}:{ROOT}/tests"
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}
    )
    header = Header("", width, height, len(photo.getbands()), photo.mode == "RGBA")
    image_format = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[1].upper())
    need = needed_bytes(header, 2, image_format, reference=False)
    assert int(found.stdout) < need + (30 << 20)  # and the float bands
    assert np.asarray(Image.open(f"{tmp_path}-x2/{name}")).shape[:2] == (2 * height, 2 * width)
