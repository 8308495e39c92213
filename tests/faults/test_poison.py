"""Pictures that kill whoever opens them, jobs that are cancelled, and retries: with real processes that really die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import servers
from helpers import make_photos, owner_of, wait_until
from PIL import Image
from rig import LEASE_S, Rig, rig
from tally import Tally, add, digests

from worker.uris import open_storage

pytestmark = [pytest.mark.redis, pytest.mark.s3, pytest.mark.faults]


@pytest.fixture(scope="module")
def pair(s3_server: servers.S3Server) -> Iterator[Rig]:
    """Two workers that reach S3 through a proxy."""
    with rig(["one", "two"], s3=s3_server, chunk_images=15) as made:
        yield made


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGKILL])
def test_a_picture_that_kills_its_process_is_given_up_after_three_deaths(
    pair: Rig, bucket: str, tmp_path: Path, tally: Tally, death: signal.Signals
) -> None:
    tally.fault = f"a picture that ends its process ({death.name})"
    folder = make_photos(tmp_path / "photos", 30)
    source = open_storage(f"s3://{bucket}/in", pair.service.settings)
    for path in folder.rglob("*.*"):
        source.write(path.relative_to(folder).as_posix(), path.read_bytes())
    assert pair.service.run(f"s3://{bucket}/in", f"s3://{bucket}/quiet", score=False)["state"] == "completed"
    wanted = digests(f"s3://{bucket}/quiet", pair.service)
    source.write("sub/0005-poison.png", (folder / "sub" / "0005.png").read_bytes())

    def kill_reader(port: int) -> None:
        reader = owner_of(port, [pid for node in pair.nodes for pid in node.children])
        with suppress(ProcessLookupError):
            os.kill(reader or 0, death)
        tally.runs += 1

    assert pair.s3_way
    poison = pair.s3_way.hold(f"GET /{bucket}/in/sub/0005-poison.png".encode(), on_reach=kill_reader)
    job_id = pair.service.submit(f"s3://{bucket}/in", f"s3://{bucket}/out", score=False)
    summary = pair.service.wait(job_id)
    time.sleep(3 * LEASE_S)  # would it come round again, it would be now

    assert len(poison.ports) == 3
    poison.release()
    failure = pair.service.rows(job_id)["sub/0005-poison.png"]
    assert f"signal {death.value} ({death.name})" in str(failure.message)
    assert summary["images"] == {"total": 31, "done": 30, "failed": 1, "skipped": 0, "ignored": 0}
    assert summary["failures"] == {"crashed": 1}
    assert not pair.service.client.ledger.is_open(job_id)
    add(tally, pair.service, job_id, wanted, {"sub/0005-poison.png": "crashed"})
    assert tally.clean, tally


def test_a_cancel_ends_the_job_within_the_image_in_hand(pair: Rig, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 4)
    Image.effect_noise((4000, 4000), 60).save(photos / "large.png")  # minutes of work
    job_id = pair.service.submit(photos, tmp_path / "out", score=False)
    chunks = {"large.png"}
    wait_until(lambda: pair.counted(job_id) == 4 and bool(pair.leases(job_id)), 120)

    pair.service.client.cancel(job_id)
    began = time.monotonic()
    wait_until(lambda: not pair.service.client.ledger.is_open(job_id), 60)

    assert time.monotonic() - began < 30
    assert not (tmp_path / "out" / "large.png").exists()
    assert set(pair.service.rows(job_id)).isdisjoint(chunks)
    assert pair.service.wait(job_id)["images"]["done"] == 4


def test_a_retry_whose_worker_is_killed_touches_the_failed_images_only(pair: Rig, tmp_path: Path, tally: Tally) -> None:
    tally.fault = "kill -9 of workers during a retry"
    photos = make_photos(tmp_path / "photos", 20)
    for n in range(10):
        (photos / f"bad-{n}.png").write_bytes(b"")
    job_id = pair.service.submit(photos, tmp_path / "out", score=False)
    assert pair.service.wait(job_id)["failures"] == {"empty": 10}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    for n in range(9):
        Image.effect_noise((300, 300), 60).save(photos / f"bad-{n}.png")

    assert pair.service.client.retry(job_id) == 10
    wait_until(lambda: bool(pair.leases(job_id)))
    for node in pair.nodes:
        node.kill_child()
    tally.runs += 1
    summary = pair.service.wait(job_id)

    tally.images += 30
    assert summary["images"] == {"total": 30, "done": 29, "failed": 1, "skipped": 0, "ignored": 0}
    assert [row.key for row in pair.service.client.failed(job_id)] == ["bad-9.png"]
    outputs = [path for path in before if ".vdsr" not in path.parts]
    assert {path: path.stat().st_mtime_ns for path in outputs} == {path: before[path] for path in outputs}
