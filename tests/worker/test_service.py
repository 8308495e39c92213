"""Jobs through a real Redis and real worker processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import Service, kill, make_photos, wait_until
from PIL import Image

from vdsr import Upscaler
from vdsr.evaluate import score_degraded
from worker.errors import NothingMatched, StorageError, UsageError
from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]


def test_a_folder_goes_in_and_the_same_tree_comes_out_twice_as_large(service: Service, photos: Path) -> None:
    summary = service.run(photos)

    out = photos.with_name("photos-x2")
    names = sorted(p.relative_to(photos) for p in photos.rglob("*.*") if p.is_file())
    made = sorted(p.relative_to(out) for p in out.rglob("*.*") if p.is_file() and ".vdsr" not in p.parts)
    assert made == names
    assert all(Image.open(out / name).size == (48, 32) for name in names)
    assert (summary["state"], summary["images"]["done"], summary["images"]["total"]) == ("completed", 30, 30)
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]


def test_the_record_at_the_destination_tells_everything(service: Service, photos: Path) -> None:
    summary = service.run(photos)

    record = photos.with_name("photos-x2") / ".vdsr" / summary["id"]
    job = json.loads((record / "job.json").read_text())
    rows = [json.loads(line) for part in (record / "results").iterdir() for line in part.read_text().splitlines()]
    assert job["ended"]["images"] == summary["images"]
    assert job["ended"]["state"] == "completed"
    assert len({row["key"] for row in rows}) == len(rows) == 30
    assert {row["outcome"] for row in rows} == {"done"}
    assert {row["model"] for row in rows} == {summary["model"]["sha256"]}
    stages = {"fetch", "wait", "decode", "upscale", "network", "score", "encode", "write"}
    assert set(rows[0]["seconds"]) == stages
    assert sum(row["psnr"]["vdsr"] for row in rows) / 30 == pytest.approx(summary["psnr"]["vdsr"], abs=1e-3)


def test_bad_files_cost_only_themselves(service: Service, photos: Path) -> None:
    good = (photos / "0002.png").read_bytes()
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    Image.new("CMYK", (20, 20)).save(photos / "print.jpg")
    Image.new("L", (1100, 1000)).save(photos / "huge.png")
    (photos / "notes.txt").write_text("no picture")

    summary = service.run(photos)

    assert summary["images"] == {"total": 35, "done": 30, "failed": 5, "skipped": 0, "ignored": 1}
    expected = {"empty": 1, "truncated": 1, "unreadable": 1, "unsupported": 1, "too_large": 1}
    assert summary["failures"] == expected
    failed = {row.key: row for row in service.client.failed(summary["id"])}
    assert "VDSR_MAX_PIXELS" in failed["huge.png"].message
    assert not (photos.with_name("photos-x2") / "cut.png").exists()


def test_a_single_file_gets_its_scale_in_its_name(service: Service, photos: Path) -> None:
    summary = service.run(photos / "0002.png", scale=3.0)

    assert Image.open(photos / "0002-x3.png").size == (72, 48)
    assert summary["images"]["total"] == 1


def test_psnr_through_the_queue_is_that_of_eval(service: Service, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples" / "photos"
    names = ["rocket.jpg", "photographer-gray.jpg"]
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(examples / name, tmp_path / "in")

    rows = service.rows(service.run(tmp_path / "in", tmp_path / "out")["id"])

    upscaler = Upscaler(device="cpu")
    for name in names:
        direct = score_degraded(upscaler, np.asarray(Image.open(examples / name)), 2)
        assert rows[name].psnr["bicubic"] == pytest.approx(direct.bicubic.psnr_y, abs=1e-4)
        assert rows[name].psnr["vdsr"] == pytest.approx(direct.vdsr.psnr_y, abs=1e-3)
        assert direct.gain_db > 0.5


def test_a_reference_gives_psnr_and_ssim_against_the_truth(service: Service, tmp_path: Path) -> None:
    truth = np.asarray(Image.open(Path(__file__).parents[2] / "examples" / "photos" / "rocket.jpg"))
    for folder in ("hr", "lr"):
        (tmp_path / folder).mkdir()
    Image.fromarray(truth).save(tmp_path / "hr" / "a.png")
    Image.fromarray(truth[::2, ::2]).save(tmp_path / "lr" / "a.bmp")  # another suffix than the reference's
    Image.fromarray(truth[::2, ::2]).save(tmp_path / "lr" / "alone.bmp")

    summary = service.run(tmp_path / "lr", tmp_path / "out", reference=str(tmp_path / "hr"))

    rows = service.rows(summary["id"])
    assert rows["a.bmp"].psnr["kind"] == "reference"
    assert rows["a.bmp"].psnr["vdsr"] > 15
    assert 0 < rows["a.bmp"].psnr["ssim"]["vdsr"] < 1
    assert rows["alone.bmp"].psnr["vdsr"] is None
    assert "no reference" in rows["alone.bmp"].psnr["reason"]
    assert (summary["psnr"]["images"], summary["psnr"]["without"]) == (1, 1)


def test_three_thousand_objects_in_s3_are_all_done_by_two_workers(service: Service, bucket: str) -> None:
    from worker.uris import open_storage

    source = open_storage(f"s3://{bucket}/in/small", service.settings)
    decoy = open_storage(f"s3://{bucket}/in/small2", service.settings)
    pictures = _encoded_pictures(20)
    for n in range(3000):
        source.write(f"{n % 7}/{n:05d}.png", pictures[n % 20])
    decoy.write("not-mine.png", pictures[0])

    summary = service.run(f"s3://{bucket}/in/small", f"s3://{bucket}/out", score=False)

    assert summary["images"] == {"total": 3000, "done": 3000, "failed": 0, "skipped": 0, "ignored": 0}
    target = open_storage(f"s3://{bucket}/out", service.settings)
    keys = [entry.key for entry in target.entries()]
    assert len(keys) == len(set(keys)) == 3000
    rows = service.rows(summary["id"])
    assert set(rows) == set(keys)
    assert len(service.client.workers()) == 2


def test_one_object_of_a_bucket_is_done_beside_itself(service: Service, bucket: str) -> None:
    from worker.uris import open_storage

    root = open_storage(f"s3://{bucket}", service.settings)
    for key in ("a/one.png", "a/one.pnga.png", "a/b/two.png", "top.png"):
        root.write(key, _encoded_pictures(1)[0])

    single = service.run(f"s3://{bucket}/a/one.png")
    whole = service.run(f"s3://{bucket}", f"s3://{bucket}/large", include=("*.png",), exclude=("*-x2.png",))

    assert single["images"]["total"] == 1
    assert root.exists("a/one-x2.png")
    assert whole["images"]["total"] == 4
    assert root.exists("large/a/b/two.png")
    with pytest.raises(UsageError, match="give a destination"):
        service.submit(f"s3://{bucket}")


def test_a_bucket_that_is_not_there_fails_before_anything_is_queued(service: Service, bucket: str) -> None:
    jobs = len(service.client.ledger.job_ids())

    for source, target in ((f"s3://{bucket}x/in", None), (f"s3://{bucket}/in", f"s3://{bucket}x/out")):
        with pytest.raises((StorageError, NothingMatched)):
            service.submit(source, target)
    assert len(service.client.ledger.job_ids()) == jobs


def _encoded_pictures(count: int) -> list[bytes]:
    from io import BytesIO

    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        buffer = BytesIO()
        Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def test_a_killed_worker_loses_nothing_and_counts_nothing_twice(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 120, size=(64, 48))
    job_id = service.submit(photos)
    for done in (10, 40, 70):
        wait_until(lambda done=done: _done(service, job_id) >= done)
        wait_until(lambda: len(service.children()) == 2)  # the last victim's successor has come
        kill(service.children()[0])

    summary = service.wait(job_id)

    assert summary["images"] == {"total": 120, "done": 120, "failed": 0, "skipped": 0, "ignored": 0}
    rows = service.rows(job_id)
    assert len(rows) == 120
    assert all((photos.with_name("photos-x2") / row.output).exists() for row in rows.values())


def _done(service: Service, job_id: str) -> int:
    return int(service.client.ledger.record(job_id).counters.get("done", 0))


def test_cancel_takes_effect_within_the_image_in_hand(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 40, size=(200, 200))
    job_id = service.submit(photos, score=False)
    wait_until(lambda: _done(service, job_id) >= 1)

    service.client.cancel(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id), seconds=20)

    summary = service.wait(job_id)
    assert summary["state"] == "cancelled"
    assert 0 < summary["images"]["done"] < 40
    wait_until(lambda: "ended" in _job_json(photos, job_id))
    assert _job_json(photos, job_id)["ended"]["state"] == "cancelled"


def _job_json(photos: Path, job_id: str) -> dict:
    folder = next(photos.parent.glob("photos-x*"))
    return json.loads((folder / ".vdsr" / job_id / "job.json").read_text())


def test_failed_images_are_done_again_once_they_are_mended(service: Service, photos: Path) -> None:
    good = (photos / "0002.png").read_bytes()
    (photos / "bad1.png").write_bytes(b"")
    (photos / "bad2.png").write_bytes(b"")
    first = service.run(photos)
    (photos / "bad1.png").write_bytes(good)

    assert service.client.retry(first["id"]) == 2
    summary = service.wait(first["id"])

    assert summary["images"] == {"total": 32, "done": 31, "failed": 1, "skipped": 0, "ignored": 0}
    assert summary["failures"] == {"empty": 1}
    assert [row.key for row in service.client.failed(first["id"])] == ["bad2.png"]


def test_outputs_that_are_there_can_be_left_alone(service: Service, photos: Path) -> None:
    service.run(photos)
    out = photos.with_name("photos-x2")
    (out / "0002.png").unlink()
    before = (out / "0004.png").stat().st_mtime_ns

    summary = service.run(photos, overwrite="never")

    assert (summary["images"]["done"], summary["images"]["skipped"]) == (1, 29)
    assert (out / "0004.png").stat().st_mtime_ns == before
    assert (out / "0002.png").exists()


def test_the_same_job_again_does_only_what_is_missing_or_has_changed(service: Service, photos: Path) -> None:
    service.run(photos)
    out = photos.with_name("photos-x2")
    (out / "0002.png").unlink()
    Image.new("RGB", (24, 16), "red").save(photos / "0004.png")
    Image.new("RGB", (48, 32), "red").save(out / "0008.png")  # somebody's own: it is not ours any more
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.??g")}

    summary = service.run(photos)

    assert (summary["images"]["done"], summary["images"]["skipped"]) == (3, 27)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*.??g")}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"0002.png", "0004.png", "0008.png"}
    row = service.rows(summary["id"])["0010.png"]
    assert "made from the same source" in (row.message or "")
    assert service.run(photos, score=False)["images"]["skipped"] == 30  # looks the same
    assert service.run(photos, quality=80)["images"]["done"] == 30
    assert service.run(photos, quality=80, overwrite="always")["images"]["done"] == 30


@pytest.mark.s3
def test_outputs_in_s3_remember_what_they_were_made_from(service: Service, bucket: str) -> None:
    source = open_storage(f"s3://{bucket}/in", service.settings)
    for n, data in enumerate(_encoded_pictures(3)):
        source.write(f"{n}.png", data)
    first = service.run(f"s3://{bucket}/in", f"s3://{bucket}/out")
    source.write("1.png", _encoded_pictures(4)[3])

    second = service.run(f"s3://{bucket}/in", f"s3://{bucket}/out")

    assert first["images"]["done"] == 3
    assert (second["images"]["done"], second["images"]["skipped"]) == (1, 2)


def test_a_destination_inside_the_source_is_not_listed_again(service: Service, photos: Path) -> None:
    service.run(photos, photos / "large")

    summary = service.run(photos, photos / "large")

    assert summary["images"]["total"] == 30


def test_a_destination_inside_the_source_may_not_hold_originals(service: Service, photos: Path) -> None:
    with pytest.raises(UsageError, match="holds files that no job made"):
        service.submit(photos, photos / "sub")


def test_include_exclude_and_no_recursive_choose_the_images(service: Service, photos: Path) -> None:
    assert service.run(photos, include=("*.jpg",))["images"]["total"] == 10
    assert service.run(photos, include=("sub/*",), exclude=("*1.*",))["images"]["total"] == 12
    assert service.run(photos, recursive=False)["images"]["total"] == 15


def test_inputs_that_want_the_same_output_are_refused_before_work_starts(service: Service, photos: Path) -> None:
    shutil.copy(photos / "0003.jpg", photos / "0002.jpg") if (photos / "0003.jpg").exists() else Image.new(
        "RGB", (8, 8)
    ).save(photos / "0002.jpg")

    with pytest.raises(UsageError, match=r"2 inputs map to 0002.png \(0002.jpg, 0002.png\)"):
        service.submit(photos, format="png")
    assert not photos.with_name("photos-x2").exists()


def test_a_folder_without_images_is_told_at_once(service: Service, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no picture")

    with pytest.raises(NothingMatched, match="1 other files were left out"):
        service.submit(tmp_path)


def test_a_worker_with_other_weights_ends_the_job_clearly(service: Service, photos: Path, tmp_path: Path) -> None:
    import dataclasses

    from vdsr import checkpoint
    from vdsr.model import VDSR

    checkpoint.save(VDSR(), tmp_path / "other.safetensors", version="other")
    mine = dataclasses.replace(
        service, settings=dataclasses.replace(service.settings, weights=tmp_path / "other.safetensors")
    )

    summary = mine.run(photos)

    assert summary["state"] == "failed"
    assert "the job asks for model other" in summary["error"]


def test_retrying_a_collision_does_not_touch_the_first_ones_output(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(1001):  # beyond the first page, which would be refused before any work
        (folder / f"a{n:04d}.png").write_bytes(b"")
    Image.new("RGB", (30, 20)).save(folder / "z.jpg")
    Image.new("RGB", (10, 6)).save(folder / "z.png")
    first = service.run(folder, tmp_path / "out", format="png", score=False)
    for n in range(1001):
        (folder / f"a{n:04d}.png").unlink()

    service.client.retry(first["id"])
    again = service.wait(first["id"])

    assert first["failures"] == {"empty": 1001, "name_collision": 1}
    assert again["failures"] == {"name_collision": 1, "not_found": 1001}
    assert Image.open(tmp_path / "out" / "z.png").size == (60, 40)


def test_a_job_ends_when_its_record_can_no_longer_be_written(service: Service, photos: Path) -> None:
    job_id = service.submit(photos, photos.with_name("out"), score=False)
    record = photos.with_name("out") / ".vdsr" / job_id
    shutil.rmtree(record, ignore_errors=True)
    record.parent.mkdir(exist_ok=True, parents=True)
    record.write_text("in the way")

    summary = service.wait(job_id)

    assert summary["state"] == "failed"
    assert "in the way" not in (summary["error"] or "")
    assert str(record) in summary["error"]
    wait_until(lambda: not service.client.ledger.is_open(job_id))


def test_a_file_given_as_the_output_decides_its_format(service: Service, photos: Path) -> None:
    service.run(photos / "0002.png", photos / "large.webp")

    assert Image.open(photos / "large.webp").format == "WEBP"
    with pytest.raises(UsageError, match="does not end as PNG does"):
        service.submit(photos / "0002.png", photos / "large.webp", format="png")
    with pytest.raises(UsageError, match="does not end as PNG does"):
        service.submit(photos / "0002.png", photos / "large.gif")


def test_a_destination_that_holds_the_source_is_refused(service: Service, photos: Path) -> None:
    for target in (photos, photos.parent):
        with pytest.raises(UsageError, match="originals could be replaced"):
            service.submit(photos, target)


def test_a_reference_is_checked_before_anything_is_queued(service: Service, photos: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        service.submit(photos, reference=str(photos / "nothing"))
    with pytest.raises(UsageError, match="give a folder"):
        service.submit(photos, reference=str(photos / "0002.png"))

    summary = service.run(photos / "0002.png", reference=str(photos / "sub" / "0001.png"))

    assert service.rows(summary["id"])["0002.png"].psnr["reason"] == (
        "the reference has 24 x 16 pixels, the output 48 x 32"
    )


@pytest.mark.quality
def test_set5_through_the_queue_gives_the_figures_of_eval(service: Service, tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "test" / "Set5"
    if not folder.exists():
        pytest.skip("the image sets are not here")

    summary = service.run(folder, tmp_path / "out")

    upscaler = Upscaler(device="cpu")
    direct = [score_degraded(upscaler, np.asarray(Image.open(p)), 2) for p in sorted(folder.glob("*.png"))]
    assert summary["psnr"]["images"] == 5
    assert summary["psnr"]["bicubic"] == pytest.approx(33.6614, abs=1e-4)
    assert summary["psnr"]["vdsr"] == pytest.approx(sum(d.vdsr.psnr_y for d in direct) / 5, abs=1e-3)
