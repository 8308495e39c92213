"""What the line of one job does with its images, without a queue."""

from __future__ import annotations

import gc
import io
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import pipeline, run_line
from PIL import Image, ImageFile

import worker.images.decoding
from vdsr import Upscaler
from vdsr.errors import CheckpointError
from worker.jobs import Image as JobImage
from worker.memory import Admission
from worker.pipeline import ImageCrashed, Pipeline
from worker.uris import open_storage

RNG = np.random.default_rng(3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six thumbnails of one size, a larger one among them, a gray one, and a broken one."""
    shapes = [(20, 30, 3)] * 3 + [(25, 30, 3), (20, 30)] + [(20, 30, 3)] * 3
    photos = tmp_path / "photos"
    photos.mkdir()
    for n, shape in enumerate(shapes):
        Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(photos / f"{n}.png")
    (photos / "8.png").write_bytes(b"broken")
    return photos


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def counted(line: Pipeline) -> list[int]:
    """How many images go through the network at a time, as the line comes to run."""
    together: list[int] = []
    alike: Callable[..., np.ndarray] = line.upscaler.sharpen_alike

    def sharpen_alike(planes: np.ndarray, *arguments: object, **more: object) -> np.ndarray:
        together.append(len(planes))
        return alike(planes, *arguments, **more)

    line.upscaler.sharpen_alike = sharpen_alike  # type: ignore[method-assign]
    return together


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_small_images_of_one_size_go_through_together_and_come_out_as_alone(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = pipeline(folder, engine=engine)
    together = counted(line)
    load = Pipeline.load
    monkeypatch.setattr("worker.pipeline.LOADERS", 1)  # one after the other: all but the first are loaded meanwhile
    sharpen = line.upscaler.sharpen_alike
    loaded: list[object] = []

    def loading(self: Pipeline, *arguments: object) -> object:
        loaded.append(1)
        return load(self, *arguments)  # type: ignore[arg-type]

    def patient(*arguments: object, **more: object) -> object:
        while len(loaded) < len(names(folder)):
            pass
        return sharpen(*arguments, **more)

    monkeypatch.setattr(Pipeline, "load", loading)
    monkeypatch.setattr(line.upscaler, "sharpen_alike", patient)

    rows = run_line(line, names(folder))

    assert [row.outcome for row in rows] == ["done"] * 8 + ["failed"]
    assert 4 in together  # gray goes with colour
    alone = Upscaler(device="cpu", engine=engine)
    for row in rows[:8]:
        wanted = alone.upscale(np.asarray(Image.open(folder / row.key)), 2)
        assert np.array_equal(np.asarray(Image.open(f"{folder}-x2/{row.key}")), wanted)
        assert row.seconds["network"] > 0


def test_the_time_of_the_network_is_told_and_is_part_of_the_rest(folder: Path) -> None:
    (row,) = run_line(pipeline(folder, score=False), ["3.png"])
    assert 0 < row.seconds["network"] <= row.seconds["upscale"]


def test_tiles_that_were_redone_are_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = pipeline(folder, score=False)
    sharpen = line.upscaler.sharpen

    def overflowing(*arguments: object, **more: object) -> object:
        line.upscaler.engine.redone += 2
        return sharpen(*arguments, **more)

    monkeypatch.setattr(line.upscaler, "sharpen", overflowing)

    (row,) = run_line(line, ["3.png"])

    assert row.notes == ("2 tiles overflowed in bf16 and were computed in fp32",)


def test_tiles_that_were_redone_are_noted_of_images_that_went_through_together(folder: Path) -> None:
    line = pipeline(folder, engine="torch", score=False)
    executor = line.upscaler.engine.executor
    begin = executor.begin

    def overflowing(planes: Sequence[np.ndarray], *, exact: bool) -> Callable[[], np.ndarray]:
        stack = begin(planes, exact=exact)()
        return lambda: stack if exact else stack * np.float32("inf")

    executor.begin = overflowing
    line.upscaler.engine.exact = False
    works = [
        line.load(JobImage(name, 1, "", name), Admission(1 << 30).draw(), Admission(1 << 30).draw())
        for name in ("0.png", "1.png")
    ]

    line._sharpen_together(works, lambda: None)
    rows = [line.store(work) for work in works]

    note = "2 tiles of 2 images computed together overflowed in bf16 and were computed in fp32"
    assert [row.notes for row in rows] == [(note,), (note,)]


def test_broken_weights_are_no_images_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = pipeline(folder)

    def broken(*arguments: object, **more: object) -> None:
        raise CheckpointError("infinite")

    monkeypatch.setattr(line.upscaler, "sharpen", broken)

    with pytest.raises(CheckpointError):
        run_line(line, ["3.png"])


def test_a_fault_met_together_is_told_as_the_firsts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = pipeline(folder)

    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(line.upscaler, "sharpen_alike", broken)

    with pytest.raises(ImageCrashed) as caught:
        run_line(line, names(folder))
    assert caught.value.number == 0


def test_a_needle_of_a_picture_is_refused(folder: Path) -> None:
    Image.new("L", (150_000, 1)).save(folder / "needle.png")
    (row,) = run_line(pipeline(folder), ["needle.png"])
    assert (row.outcome, row.code) == ("failed", "unsupported")
    assert "300,000 x 2 would have a side over 200,000 pixels" in str(row.message)


def test_a_file_over_the_limit_is_refused_by_its_listing_before_a_byte_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = pipeline(folder, score=False)
    line.settings = replace(line.settings, max_file_bytes=1000)
    (folder / "0.png").unlink()
    image = JobImage("0.png", 30 << 30, "", "0.png")
    (((_, row),),) = line.run([(0, image)], on_start=lambda n: None, on_tile=lambda: None)
    assert (row.outcome, row.code) == ("failed", "too_large")
    assert row.message == (
        "the file has 32,212,254,720 bytes, over the limit of 1,000; "
        "compress or split the picture, or raise VDSR_MAX_FILE_BYTES"
    )


def test_a_file_that_grew_over_the_limit_since_it_was_listed_is_refused(folder: Path) -> None:
    line = pipeline(folder, score=False)
    line.settings = replace(line.settings, max_file_bytes=1000)
    with (folder / "0.png").open("ab") as file:
        file.truncate(30 << 30)  # takes no disk
    rows = run_line(line, ["0.png", "4.png"])
    assert [(row.outcome, row.code) for row in rows] == [("failed", "too_large"), ("done", None)]
    assert "the file has 32,212,254,720 bytes, over the limit of 1,000" in str(rows[0].message)


def test_files_that_are_read_ahead_take_no_more_than_the_limit_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(12):
        Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"large-{n}.png")
    chosen = sorted(path.name for path in folder.glob("large-*"))
    size = max((folder / name).stat().st_size for name in chosen)
    line = pipeline(folder, score=False)
    line.settings = replace(line.settings, max_file_bytes=2 * size)
    held, most, lock = 0, 0, threading.Lock()
    read, decode = line.source.read_version, worker.images.decode

    def reading(key: str, *, max_bytes: int) -> tuple[bytes, str]:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        time.sleep(0.01)
        return read(key, max_bytes=max_bytes)

    def decoding(data: bytes, **options: object) -> object:
        nonlocal held
        picture = decode(data, **options)  # type: ignore[arg-type]
        with lock:
            held -= 1
        return picture

    monkeypatch.setattr(line.source, "read_version", reading)
    monkeypatch.setattr("worker.pipeline.decode", decoding)
    images = [(n, JobImage(name, size, "", name)) for n, name in enumerate(chosen)]
    rows = [row for rows in line.run(images, on_start=lambda n: None, on_tile=lambda: None) for _, row in rows]
    assert [row.outcome for row in rows] == ["done"] * 12
    assert most == 2


def test_a_reference_of_another_size_is_not_decoded(folder: Path, tmp_path: Path) -> None:
    truths = tmp_path / "truths"
    truths.mkdir()
    Image.new("RGB", (3000, 2000)).save(truths / "0.png")
    whole = (truths / "0.png").read_bytes()
    (truths / "0.png").write_bytes(whole[:100])  # its header is there, and not a pixel
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (40, 60), "red").save(truths / "1.png", exif=turned)  # seen as 60 x 40
    line = pipeline(folder)
    line.reference = open_storage(str(truths), line.settings)

    rows = run_line(line, ["0.png", "1.png"])

    assert rows[0].psnr is not None
    assert rows[0].psnr["reason"] == "the reference has 3000 x 2000 pixels, the output 60 x 40"
    assert rows[1].psnr is not None
    assert rows[1].psnr["vdsr"] > 0


def test_an_output_is_compared_with_its_input_also_where_there_is_no_other_figure(folder: Path) -> None:
    Image.new("RGB", (3, 3), "red").save(folder / "tiny.png")

    rows = run_line(pipeline(folder), ["tiny.png", "0.png"])

    assert [row.psnr and row.psnr["reason"] for row in rows] == ["3 x 3 pixels are too few to shrink by 2", None]
    assert all(row.psnr and (row.psnr["lr_consistency"] == "inf" or row.psnr["lr_consistency"] > 30) for row in rows)


def test_too_little_memory_is_told_as_such_and_not_as_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", short)
    with pytest.raises(ImageCrashed) as caught:
        run_line(pipeline(folder), ["3.png"])
    assert "not enough memory to decode a PNG" in repr(caught.value.__cause__)


def test_neither_pictures_nor_their_failures_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        Image.new("LAB", (90, 90)).save(folder / f"lab-{n}.tif")
    pictures: list[weakref.ref[object]] = []
    convert = worker.images.decoding.to_array

    def seen(image: Image.Image) -> object:
        pictures.append(weakref.ref(image))
        return convert(image)

    monkeypatch.setattr("worker.images.decoding.to_array", seen)
    gc.disable()
    try:
        rows = run_line(pipeline(folder), names(folder))
        assert [row.outcome for row in rows].count("failed") == 6
        assert len(pictures) == 13
        assert [picture for picture in pictures if picture() is not None] == []
    finally:
        gc.enable()


def test_the_device_waits_for_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(4):
        Image.fromarray(RNG.integers(0, 256, (20, 30 + n, 3), np.uint8)).save(photos / f"{n}.png")
    line = pipeline(photos)
    truths = open_storage(str(tmp_path / "truths"), line.settings)
    line.reference = truths
    for name in names(photos):
        larger = io.BytesIO()
        Image.fromarray(line.upscaler.upscale(np.asarray(Image.open(photos / name)), 2)).save(larger, "PNG")
        truths.write(name, larger.getvalue())
    all_computed, sharpen, read = threading.Event(), line.upscaler.sharpen, truths.read
    computed: list[np.ndarray] = []
    in_time: list[bool] = []

    def watched(plane: np.ndarray, **more: Callable[[], None]) -> np.ndarray:
        computed.append(sharpen(plane, **more))
        if len(computed) == 4:
            all_computed.set()
        return computed[-1]

    def late(key: str, *, max_bytes: int) -> bytes:
        in_time.append(all_computed.wait(30))
        return read(key, max_bytes=max_bytes)

    monkeypatch.setattr(line.upscaler, "sharpen", watched)
    monkeypatch.setattr(truths, "read", late)
    rows = run_line(line, names(photos))

    assert in_time == [True] * 4
    assert [row.psnr["vdsr"] for row in rows if row.psnr] == ["inf"] * 4
