"""What `--dry-run` tells is what the job then does."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import servers
from helpers import make_photos, pipeline, run_line, vdsr
from PIL import Image

from worker.client import draft
from worker.forecast import forecast
from worker.jobs import Options
from worker.parts import Parts
from worker.settings import load_settings
from worker.uris import open_storage

SETTINGS = load_settings({"VDSR_REDIS_URL": "redis://localhost:1/0"})


def test_a_dry_run_counts_what_is_to_do_and_refused_and_writes_nothing(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 4, size=(30, 20))
    (tmp_path / "in" / "empty.png").touch()
    (tmp_path / "in" / "notes.txt").touch()

    result = vdsr(state, "upscale", tmp_path / "in", "--scale", "3", "--dry-run", "--json")

    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["images"] == {"total": 5, "todo": 4, "skipped": 0, "refused": 1, "ignored": 1}
    assert told["refused"] == {"empty": 1}
    assert told["examples"][0]["key"] == "empty.png"
    assert told["input_megapixels"] == pytest.approx(4 * 600 / 1e6, abs=1e-3)  # all are in the sample: no estimate
    assert told["output_megapixels"] == pytest.approx(9 * 4 * 600 / 1e6, abs=1e-3)
    assert told["seconds"] is None
    assert not (tmp_path / "in-x3").exists()


def test_a_dry_run_of_submit_needs_no_redis_and_says_why_the_time_is_not_known(
    state: dict[str, str], tmp_path: Path
) -> None:
    make_photos(tmp_path / "in", 2)

    result = vdsr(state, "submit", tmp_path / "in", "-n", VDSR_REDIS_URL="redis://localhost:1/0")

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 images: 2 to do, 0 skipped, 0 refused\n")
    assert "time: not known: cannot reach Redis at redis://localhost:1/0" in result.stdout


def test_a_dry_run_skips_just_what_the_job_would_skip(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 6)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.*"))
    assert {row.outcome for row in run_line(pipeline(source), names[:4])} == {"done"}
    changed = source / names[0]
    os.utime(changed, (1, 1))

    def counts(**options: object) -> tuple[int, int]:
        found = forecast(draft(str(source), None, Options(**options), SETTINGS), SETTINGS, None)
        return found.todo, found.skipped

    assert counts() == (3, 3)  # one is stale
    assert counts(overwrite="never") == (2, 4)
    assert counts(overwrite="always") == (6, 0)
    assert counts(quality=50) == (6, 0)  # other settings


def test_a_dry_run_tells_pictures_that_would_become_too_wide_for_their_format(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (5000, 2)).save(tmp_path / "in" / "wide.webp")

    found = forecast(draft(str(tmp_path / "in"), None, Options(scale=4), SETTINGS), SETTINGS, None)

    assert found.sample_refused == {"format_limit": 1}
    assert "16,383" in found.examples[0][2]


def test_the_time_comes_from_the_speed_of_earlier_jobs_at_the_destination(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 10, size=(100, 100))
    job = draft(str(tmp_path / "in"), None, Options(), SETTINGS)
    speeds = {"a": ("completed", 0.1), "b": ("completed", 0.2), "c": ("completed", 0.4), "d": ("cancelled", 9.0)}
    for name, (ending, speed) in speeds.items():
        earlier = Parts(dataclasses.replace(job, id=name), SETTINGS)
        earlier.write_job({"ended": {"state": ending, "megapixels_per_second": speed}})

    found = forecast(job, SETTINGS, None)

    assert found.speed == 0.2
    assert found.seconds == pytest.approx(0.4 / 0.2)


def test_a_listing_larger_than_the_sample_is_estimated_by_format(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 60, size=(40, 30))

    found = forecast(draft(str(tmp_path / "in"), None, Options(scale=2), SETTINGS), SETTINGS, None)

    assert (found.total, found.todo, found.sampled) == (60, 60, 24)
    assert found.input_pixels == pytest.approx(60 * 1200, rel=0.15)  # files of one size in pixels differ in bytes


def test_one_file_is_named_by_the_template_and_never_replaces_itself(state: dict[str, str], tmp_path: Path) -> None:
    photo = make_photos(tmp_path, 1) / "0000.jpg"

    named = vdsr(state, "upscale", photo, "-n", "--json", "--name-template", "{name}@{scale}.{format}")
    same = vdsr(state, "upscale", photo, "-n", "--name-template", "{name}.{format}")
    twice = vdsr(state, "upscale", photo, "out.jpg", "-n", "--name-template", "{name}@{scale}.{format}")

    assert json.loads(named.stdout)["destination"] == str(tmp_path / "0000@2.jpg")
    assert (same.returncode, "source and destination are both" in same.stderr) == (2, True)
    assert (twice.returncode, "give one of them" in twice.stderr) == (2, True)


@pytest.mark.s3
def test_a_dry_run_asks_s3_for_marks(s3_server: servers.S3Server, bucket: str, tmp_path: Path) -> None:
    settings = load_settings({"VDSR_S3_ENDPOINT_URL": s3_server.endpoint_url})
    source = open_storage(f"s3://{bucket}/in", settings)
    for path in make_photos(tmp_path, 4).rglob("*.*"):
        source.write(path.name, path.read_bytes())
    job = draft(f"s3://{bucket}/in", f"s3://{bucket}/out", Options(), settings)
    entry = next(source.entries())
    mark = f"{job.made_of(entry.key, entry.version, job.model.sha256)} another-job"
    open_storage(job.destination, settings).write(entry.key, b"made before", mark=mark)

    found = forecast(job, settings, None)

    assert (found.total, found.todo, found.skipped, found.sampled) == (4, 3, 1, 3)
    assert found.input_pixels == pytest.approx(3 * 24 * 16)
