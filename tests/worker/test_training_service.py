"""Training as a service: a run is done once, wherever its worker dies, and its weights have to earn production."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import boto3
import pytest
import torch
from helpers import Service, children_of, kill, make_photos, published, wait_until

from vdsr import checkpoint
from vdsr.data import split
from vdsr.training.recipe import read_recipe
from worker.app import TRAINING, Queue
from worker.embedded import guarded, worker_command
from worker.errors import JobStopped, LeaseLost, NewerFormat, NotFound
from worker.jobs import SCHEMA, State
from worker.registry import CANDIDATE, PRODUCTION, Registry
from worker.settings import load_settings
from worker.training.dataset import read_dataset
from worker.training.ledger import RunLedger, RunRecord
from worker.training.publish import shortfall
from worker.training.runs import Run, new_run_id
from worker.training.task import RunLease
from worker.training.work import Watch, do_run

pytestmark = [pytest.mark.redis, pytest.mark.s3]

TINY = {"steps": "30", "decay_steps": "5", "warmup": "2", "batch": "2", "patch": "24", "validate_every": "10"}
TINY |= {"scales": "[2, 3, 4]"}


@pytest.fixture
def ledger(redis_url: str) -> RunLedger:
    return RunLedger(redis_url)


@pytest.fixture
def quiet(quiet_redis_url: str) -> RunLedger:
    """A ledger that no worker looks at."""
    return RunLedger(quiet_redis_url)


def drafted(service: Service, data: str | Path, folder: str | Path | None = None, **changes: object) -> Run:
    steps = {key: str(changes.pop(key)) for key in ("steps", "patch") if key in changes}
    run_id = new_run_id()
    values = {"data": (str(data),), "held": 1, "version": run_id, "command": "", "created": time.time()} | changes
    return Run(
        id=run_id,
        recipe=read_recipe("best", TINY | steps),
        folder=str(folder or f"{service.settings.runs}/{run_id}"),
        **values,  # type: ignore[arg-type]
    )


def submit(service: Service, ledger: RunLedger, run: Run) -> None:
    ledger.create(run)
    service.client.queue.train(run.id)


def ended(service: Service, ledger: RunLedger, run: Run) -> RunRecord:
    wait_until(lambda: ledger.record(run.id).state.ended, seconds=180)
    return ledger.record(run.id)


def tensors(path: Path) -> list[torch.Tensor]:
    return checkpoint.load(path)[0].kernels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "hr", 5, size=(60, 48))


def test_a_run_is_trained_told_and_published_as_candidate(training: Service, ledger: RunLedger, photos: Path) -> None:
    run = drafted(training, photos, publish=True)

    submit(training, ledger, run)
    record = ended(training, ledger, run)

    assert record.state is State.COMPLETED, record.error
    assert record.progress["step"] == 30
    assert set(record.result["psnr_y"]) == {"2", "3", "4"}
    # Thirty steps from random weights cannot beat bicubic.
    assert record.result["publication"]["promoted"] is False
    assert "bicubic" in record.result["publication"]["reason"]
    registry = Registry(training.settings)
    assert registry.version(CANDIDATE).name == run.version
    assert registry.version(run.version).metrics["psnr_y"]["2"]["vdsr"] == record.result["psnr_y"]["2"]["vdsr"]
    report = Path(run.folder, "report.html").read_text()
    assert run.version in report


def test_a_better_run_is_promoted_and_used(training: Service, ledger: RunLedger, photos: Path, tmp_path: Path) -> None:
    real = Path(__file__).parents[2] / "examples" / "photos"  # bicubic restores the made ones too well to be beaten
    registry = Registry(training.settings)
    poor = published(registry, f"poor-{tmp_path.name}", 700)
    registry.promote(poor, over=registry.alias(PRODUCTION))
    # One step of almost nothing from good weights: better than a network whose last layer is 1.7 times too strong.
    run = drafted(training, real, publish=True, start="shipped", steps=1)

    submit(training, ledger, run)
    record = ended(training, ledger, run)
    job = training.submit(photos, tmp_path / "out")
    training.wait(job)

    assert record.result["publication"] == {"version": run.version, "promoted": True, "reason": "it is better"}
    assert {row.model for row in training.rows(job).values()} == {record.result["sha256"]}
    Path(registry.uri, "aliases/production.json").unlink()


@pytest.mark.faults
def test_a_training_worker_that_is_asked_to_stop_saves_and_ends_at_once(
    training: Service, quiet_redis_url: str, photos: Path, tmp_path: Path
) -> None:
    quiet = RunLedger(quiet_redis_url)
    grace = {"VDSR_REDIS_URL": quiet_redis_url, "VDSR_GRACE_S": "60", "VDSR_LEASE_S": "120"}
    run = drafted(training, photos, steps=100_000)
    quiet.create(run)
    command = worker_command(name="leaving@%h", queue=TRAINING)
    environment = training.environment | grace
    with guarded(command, log=tmp_path / "leaving.log", cwd=tmp_path, env=environment) as worker:
        wait_until(lambda: quiet.sweep(queue_empty=True) == [run.id], 60)
        Queue(load_settings(environment)).train(run.id)
        wait_until(lambda: quiet.record(run.id).progress.get("step", 0) >= 3, 180)
        (celery,) = children_of(worker.pid)
        began = time.monotonic()
        os.kill(celery, signal.SIGTERM)
        worker.wait(120)

    took = time.monotonic() - began
    step = quiet.record(run.id).progress["step"]
    saved = torch.load(Path(run.folder, "state.pt"), weights_only=True)
    assert took < 30, took  # of 60
    assert saved["step"] >= step
    assert "goes back with its state saved" in (tmp_path / "leaving.log").read_text()
    assert quiet.lease(run.id, "next", 5) is not None  # at once, though the lease would last for two minutes
    quiet.end(run.id, State.CANCELLED)


def test_a_run_whose_worker_is_killed_goes_on_and_comes_to_the_same_weights(
    training: Service, ledger: RunLedger, photos: Path
) -> None:
    whole, killed = drafted(training, photos, steps=60), drafted(training, photos, steps=60)
    submit(training, ledger, killed)
    wait_until(lambda: Path(killed.folder, "state.pt").exists())
    for child in training.children():
        kill(child)

    record = ended(training, ledger, killed)
    submit(training, ledger, whole)
    ended(training, ledger, whole)

    assert record.state is State.COMPLETED, record.error
    pairs = zip(*(tensors(Path(run.folder, "vdsr.safetensors")) for run in (whole, killed)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    sessions = json.loads(Path(killed.folder, "run.json").read_text())["sessions"]
    assert len(sessions) == 2
    assert sessions[1]["from_step"] >= 1


def test_a_run_that_is_cancelled_stops_soon_with_its_state_saved(
    training: Service, ledger: RunLedger, photos: Path
) -> None:
    run = drafted(training, photos, steps=100_000)
    submit(training, ledger, run)
    wait_until(lambda: ledger.record(run.id).progress.get("step", 0) > 5)

    assert ledger.end(run.id, State.CANCELLED) is State.RUNNING

    state = Path(run.folder, "state.pt")
    saved = state.stat().st_mtime_ns
    wait_until(lambda: state.stat().st_mtime_ns > saved, seconds=20)
    follow_up = drafted(training, photos)  # the worker is free again
    submit(training, ledger, follow_up)
    assert ended(training, ledger, follow_up).state is State.COMPLETED
    assert ledger.record(run.id).state is State.CANCELLED


def test_data_and_files_of_a_run_may_lie_in_s3(
    training: Service, ledger: RunLedger, photos: Path, bucket: str, s3_server: object
) -> None:
    client = boto3.client("s3", endpoint_url=training.settings.s3_endpoint_url)
    for path in photos.rglob("*.*"):
        client.upload_file(str(path), bucket, f"hr/{path.relative_to(photos)}")
    client.put_object(Bucket=bucket, Key="hr/broken.png", Body=b"no image")
    client.put_object(Bucket=bucket, Key="hr/readme.txt", Body=b"no image either")
    run = drafted(training, f"s3://{bucket}/hr", f"s3://{bucket}/runs/mine")

    submit(training, ledger, run)
    record = ended(training, ledger, run)

    assert record.state is State.COMPLETED, record.error
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix="runs/")["Contents"]}
    files = ("run.json", "data.json", "log.jsonl", "state.pt", "vdsr.safetensors", "report.html")
    assert keys >= {f"runs/mine/{name}" for name in files}
    assert any(key.startswith("runs/mine/tensorboard/events") for key in keys)
    manifest = json.loads(client.get_object(Bucket=bucket, Key="runs/mine/data.json")["Body"].read())
    assert [entry["image"] for entry in manifest["left_out"]] == [f"s3://{bucket}/hr/broken.png"]
    cached = Path(training.settings.cache_dir, "objects")
    before = len(list(cached.iterdir()))
    data = read_dataset(run.data, (2, 3, 4), 1, training.settings)
    assert len(data.train) == 4
    assert len(list(cached.iterdir())) == before


def test_a_run_that_cannot_be_done_fails_with_its_reason(
    training: Service, ledger: RunLedger, photos: Path, tmp_path: Path
) -> None:
    single = make_photos(tmp_path / "single", 1, size=(60, 48))
    for run, reason in (
        (drafted(training, single), "1 images found"),
        (drafted(training, tmp_path / "nothing"), "check the path"),
        (drafted(training, photos, patch=512), "512 x 512 pixels"),
        (drafted(training, photos, start=str(photos / "none.safetensors")), "none.safetensors"),
    ):
        submit(training, ledger, run)
        record = ended(training, ledger, run)

        assert record.state is State.FAILED
        assert reason in (record.error or "")


def test_a_repeated_message_never_starts_a_second_run(training: Service, ledger: RunLedger, photos: Path) -> None:
    run = drafted(training, photos)
    submit(training, ledger, run)
    for _ in range(3):
        training.client.queue.train(run.id)
    ended(training, ledger, run)
    after = drafted(training, photos)
    submit(training, ledger, after)
    ended(training, ledger, after)

    sessions = json.loads(Path(run.folder, "run.json").read_text())["sessions"]
    assert len(sessions) == 1


def test_only_one_worker_owns_a_run(quiet: RunLedger, service: Service, photos: Path) -> None:
    run = drafted(service, photos)
    quiet.create(run)

    assert quiet.lease(run.id, "me", 30) == (run.to_json(), 1)
    assert quiet.lease(run.id, "you", 30) is None
    assert quiet.lease(run.id, "me", 30) == (run.to_json(), 2)  # the first answer was lost
    with pytest.raises(LeaseLost):
        quiet.beat(run.id, "you", 30, 1, {})
    assert not quiet.release(run.id, "you", blameless=False)
    assert quiet.release(run.id, "me", blameless=True)
    assert quiet.lease(run.id, "you", 30) == (run.to_json(), 2)
    quiet.beat(run.id, "you", 30, 7, {"step": 7})
    assert quiet.release(run.id, "you", blameless=False)
    assert quiet.lease(run.id, "me", 30) == (run.to_json(), 1)  # it got on
    quiet.beat(run.id, "me", 30, 0, {"phase": "reading images"})  # and is behind that again
    quiet.beat(run.id, "me", 30, 7, {"step": 7})
    assert quiet.release(run.id, "me", blameless=False)
    assert quiet.lease(run.id, "me", 30) == (run.to_json(), 2)
    quiet.end(run.id, State.CANCELLED)
    with pytest.raises(JobStopped):
        quiet.beat(run.id, "me", 30, 8, {})
    assert quiet.lease(run.id, "me", 30) is None


def test_a_lost_lease_and_a_lost_message_are_found_by_the_sweeper(
    quiet: RunLedger, service: Service, photos: Path
) -> None:
    run = drafted(service, photos)
    quiet.create(run)
    assert run.id not in quiet.sweep(queue_empty=True)  # its message may be on its way

    quiet._redis.do("hset", f"vdsr:{{{run.id}}}:run", "deadline", 0)
    quiet._redis.do("hset", f"vdsr:{{{run.id}}}:run", "token", "dead")
    assert run.id in quiet.sweep(queue_empty=False)
    with pytest.raises(LeaseLost):
        quiet.beat(run.id, "dead", 30, 1, {})

    quiet._redis.do("hset", f"vdsr:{{{run.id}}}:run", "deadline", time.time() - 40)
    assert run.id not in quiet.sweep(queue_empty=False)
    assert run.id in quiet.sweep(queue_empty=True)
    quiet.end(run.id, State.CANCELLED)
    assert run.id not in quiet.sweep(queue_empty=True)
    assert run.id in quiet.run_ids()


def test_a_worker_that_lost_its_run_does_not_write_over_its_successor(
    quiet: RunLedger, service: Service, photos: Path
) -> None:
    run = drafted(service, photos)
    quiet.create(run)
    mine = RunLease(quiet, run.id, 30)
    assert mine.take() is not None
    quiet._redis.do("hset", f"vdsr:{{{run.id}}}:run", "token", "successor")

    with pytest.raises(LeaseLost):
        do_run(run, service.settings, Watch(on_progress=mine.on_progress, before_save=mine.guard))

    assert not Path(run.folder, "state.pt").exists()
    quiet.end(run.id, State.CANCELLED)


def test_a_run_whose_redis_is_away_for_as_long_as_a_lease_is_lost(service: Service, photos: Path) -> None:
    lease = RunLease(RunLedger("redis://localhost:1/0"), "train-x", 30)
    lease.confirm()  # a moment is nothing
    lease._renewed -= 31

    with pytest.raises(LeaseLost):
        lease.confirm()


def test_a_folder_has_one_run_at_a_time(quiet: RunLedger, service: Service, photos: Path) -> None:
    run = drafted(service, photos)
    quiet.create(run)
    assert quiet.in_folder(run.folder) == run.id
    assert quiet.in_folder("/elsewhere") is None

    quiet.end(run.id, State.CANCELLED)
    assert quiet.in_folder(run.folder) is None


def test_an_unknown_run_is_not_found(ledger: RunLedger) -> None:
    for ask in (ledger.record, lambda run_id: ledger.end(run_id, State.CANCELLED)):
        with pytest.raises(NotFound, match="train-nonsense"):
            ask("train-nonsense")
    assert ledger.lease("train-nonsense", "me", 30) is None


def test_a_record_of_a_newer_version_is_refused() -> None:
    run = Run("train-x", ("/d",), 1, read_recipe("paper"), "v", "", "/f")
    assert Run.from_json(run.to_json()) == run

    with pytest.raises(NewerFormat, match="format 99"):
        Run.from_json(run.to_json().replace(f'"schema": {SCHEMA}', '"schema": 99'))


def test_validation_images_are_spread_over_the_collection() -> None:
    learn, held = split(list(range(10)), 2)

    assert held == [2, 7]
    assert learn == [0, 1, 3, 4, 5, 6, 8, 9]
    with pytest.raises(ValueError, match="3 images found; training needs more than the 3"):
        split([1, 2, 3], 3)


@pytest.mark.parametrize(
    ("figures", "incumbent", "reason"),
    [
        ({2: (30.0, 31.0), 3: (28.0, 29.0)}, {2: (30.0, 30.9), 3: (28.0, 28.9)}, ""),
        ({2: (30.0, 31.0), 3: (28.0, 28.0)}, {}, "at x3 its 28.000 dB are not above bicubic's 28.000"),
        ({2: (30.0, 31.0)}, {2: (30.0, 31.0)}, "at x2 its 31.000 dB are not above the 31.000 of old"),
        ({2: (30.0, float("nan"))}, {}, "at x2 its nan dB are not above bicubic's 30.000"),
        ({}, {}, "it was never validated"),
    ],
)
def test_a_model_must_beat_bicubic_and_the_incumbent_at_every_scale(
    figures: dict, incumbent: dict, reason: str
) -> None:
    assert shortfall(figures, incumbent, "old") == reason
