"""Jobs on disks that are full, read-only, locked or changed meanwhile: real mounts, real permissions, real workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from helpers import Service, make_photos, wait_until
from PIL import Image
from proxy import Proxy, Rule, after

from worker.errors import AccessDenied, ObjectNotFound, PlaceGone, StorageUnavailable
from worker.storage.local import LocalStorage
from worker.storage.s3 import S3Storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    yield from _mounted(tmp_path / "disk", "size=256k")


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def outputs(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file that is no record, with its picture's size: each must be whole."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".vdsr" not in p.parts]
    found = {}
    for path in files:
        with Image.open(path) as image:
            image.load()
            found[str(path.relative_to(folder))] = image.size
    return found


@as_root
def test_a_disk_that_fills_up_keeps_what_is_whole_and_says_so(
    service: Service, small_disk: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 60, size=(64, 48))

    job_id = service.submit(photos, small_disk / "out", format="bmp", score=False)
    summary = service.wait(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id), 120)

    made = outputs(small_disk / "out")
    images = summary["images"]
    # 37 KB each: six fit. Whether the record still does too is chance: then the job is completed, else it has failed.
    assert 1 <= len(made) == images["done"] <= 6
    assert set(made.values()) == {(128, 96)}
    if summary["state"] == "completed":
        assert summary["failures"] == {"disk_full": 60 - images["done"]}
    else:
        assert "No space left on device; free some space" in summary["error"]
    assert not list(small_disk.rglob("*.tmp"))


@as_root
def test_a_disk_that_was_full_is_gone_on_with_where_it_stopped(
    service: Service, small_disk: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 20, size=(64, 48))
    service.run(photos, small_disk / "out", format="bmp", score=False)
    before = outputs(small_disk / "out")

    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    summary = service.run(photos, small_disk / "out", format="bmp", score=False, overwrite="never")

    assert summary["images"] == {
        "total": 20,
        "done": 20 - len(before),
        "failed": 0,
        "skipped": len(before),
        "ignored": 0,
    }
    assert len(outputs(small_disk / "out")) == 20


@as_root
def test_a_destination_that_becomes_read_only_ends_the_job_with_the_remedy(
    service: Service, small_disk: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 20)
    job_id = service.submit(photos, small_disk, score=False)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    summary = service.wait(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id), 120)

    if summary["state"] == "completed":  # it was quicker than the mount
        pytest.skip("all was done before the disk became read-only")
    assert summary["state"] == "failed"
    assert "Read-only file system; write to another folder" in summary["error"]


@as_root
def test_a_read_only_destination_is_told_before_anything_is_queued(
    service: Service, small_disk: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 2)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    jobs = len(service.client.ledger.job_ids())

    with pytest.raises(AccessDenied, match="Read-only file system; write to another folder"):
        service.submit(photos, small_disk / "out")

    assert len(service.client.ledger.job_ids()) == jobs


def test_a_folder_that_may_not_be_read_costs_itself_only_and_is_told(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 30)
    for name in ("locked", "sub/locked"):
        make_photos(photos / name, 4)
        (photos / name).chmod(0)

    summary = service.run(photos)
    failed = {row.key: row for row in service.client.failed(summary["id"])}

    assert summary["images"] == {"total": 32, "done": 30, "failed": 2, "skipped": 0, "ignored": 0}
    assert summary["failures"] == {"folder_unreadable": 2}
    assert sorted(failed) == ["locked/", "sub/locked/"]
    assert "chmod" in failed["locked/"].message
    assert "submit again once it is mended" in failed["locked/"].message
    assert not (photos.with_name("in-x2") / "locked").exists()

    # A retry lists nothing, and so it cannot mend them: it says so again. A new submission does.
    (photos / "locked").chmod(0o755)
    (photos / "sub/locked").chmod(0o755)
    assert service.client.retry(summary["id"]) == 2
    assert service.wait(summary["id"])["failures"] == {"folder_unreadable": 2}
    again = service.run(photos, overwrite="never")
    assert (again["images"]["done"], again["images"]["skipped"], again["images"]["failed"]) == (8, 30, 0)


def test_a_folder_that_may_be_listed_and_not_entered_costs_its_images_only(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 10)
    (photos / "sub").chmod(0o444)

    try:
        summary = service.run(photos)
    finally:
        (photos / "sub").chmod(0o755)

    assert (summary["images"]["done"], summary["failures"]) == (5, {"access_denied": 5})


def test_a_file_that_may_not_be_read_costs_itself_only(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 6)
    (photos / "0002.png").chmod(0)

    summary = service.run(photos)

    assert (summary["images"]["done"], summary["failures"]) == (5, {"access_denied": 1})
    assert "chmod" in service.rows(summary["id"])["0002.png"].message


def test_a_locked_folder_at_the_destination_costs_its_images_only(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 10)
    locked = tmp_path / "out" / "sub"
    locked.mkdir(parents=True)
    locked.chmod(0o555)

    summary = service.run(photos, tmp_path / "out")

    assert (summary["images"]["done"], summary["failures"]) == (5, {"access_denied": 5})
    assert list(locked.iterdir()) == []


def test_folders_and_links_in_the_place_of_outputs_cost_those_images_only(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "in", 12)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "0002.png").mkdir(parents=True)  # a folder where a file goes
    elsewhere.mkdir()
    (out / "sub").symlink_to(elsewhere)  # a folder that leads out
    (elsewhere / "precious.png").write_bytes(b"kept")
    (out / "0004.png").symlink_to(elsewhere / "precious.png")  # a write replaces the link, and does not follow it

    summary = service.run(photos, out)

    assert (summary["images"]["done"], summary["failures"]) == (5, {"storage_error": 1, "unsafe_name": 6})
    assert [p.name for p in elsewhere.iterdir()] == ["precious.png"]
    assert (elsewhere / "precious.png").read_bytes() == b"kept"
    assert Image.open(out / "0004.png").size == (48, 32)
    assert list((out / "0002.png").iterdir()) == []


def test_links_out_of_the_source_are_not_followed(service: Service, tmp_path: Path) -> None:
    photos, secret = make_photos(tmp_path / "in", 4), make_photos(tmp_path / "secret", 2)
    (photos / "linked").symlink_to(secret)
    (photos / "linked.png").symlink_to(secret / "0001.png")

    summary = service.run(photos)

    assert summary["images"]["total"] == 4
    assert not (tmp_path / "in-x2" / "linked").exists()


def test_what_happens_to_files_after_they_were_listed_costs_themselves_only(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 60)  # three chunks, so that all of it is listed before the last is begun
    late = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))[-4:]
    gone, folder, link, changed = (photos / name for name in late)
    larger = make_photos(tmp_path / "larger", 1, size=(40, 30)) / "0000.jpg"

    def meanwhile() -> None:
        gone.unlink()
        folder.unlink()
        folder.mkdir()
        link.unlink()
        link.symlink_to("/etc/hostname")
        changed.unlink()
        Image.open(larger).save(changed)

    # Outputs go through the proxy, so that the test knows where the job is: the last part of the manifest is written,
    # and its chunk not yet queued.
    with proxy.spoiling(Rule("PUT", "manifest/0000002", after(meanwhile))):
        summary = service.run(photos, f"s3://{bucket}/out", score=False)

    rows = service.rows(summary["id"])
    codes = [rows[name].code for name in late]
    assert codes == ["not_found", "storage_error", "unsafe_name", None]
    assert (rows[late[3]].width, rows[late[3]].height) == (80, 60)
    assert "changed after it was listed" in rows[late[3]].notes[-1]
    assert (summary["images"]["done"], summary["images"]["failed"]) == (57, 3)


def test_a_source_folder_that_goes_in_mid_job_ends_it_with_the_reason(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "in", 60)

    with proxy.spoiling(Rule("PUT", "^out/(sub|[0-9])", after(lambda: photos.rename(tmp_path / "away")), skip=5)):
        job_id = service.submit(photos, f"s3://{bucket}/out", score=False)
        summary = service.wait(job_id)
    wait_until(lambda: not service.client.ledger.is_open(job_id), 120)

    assert summary["state"] == "failed"
    assert f"{str(photos)!r} is not there any more; mount or restore it" in summary["error"]
    done = [row for row in service.rows(job_id).values() if row.outcome == "done"]
    target = S3Storage(bucket, "out", endpoint_url=outside._endpoint_url)
    assert sorted(entry.key for entry in target.entries()) == sorted(row.output for row in done)
    assert len(done) == service.client.ledger.record(job_id).counters["done"]
    for row in done:
        assert Image.open(BytesIO(target.read(row.output))).size == (48, 32)


# --- the storage by itself ------------------------------------------------------------------------------------------


def test_a_file_that_grows_while_it_is_read_is_not_taken_for_whole(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    path = tmp_path / "a.png"
    path.write_bytes(b"a" * 3_000_000)
    writer = "import sys\nwith open(sys.argv[1], 'ab', buffering=0) as file:\n    while True: file.write(b'more')\n"
    with subprocess.Popen([sys.executable, "-c", writer, path]) as process:
        try:
            seen, refused = [], 0
            deadline = time.monotonic() + 60
            while refused < 20 and time.monotonic() < deadline:
                try:
                    seen.append(storage.read_version("a.png"))
                except StorageUnavailable as exc:
                    assert "was written while it was read" in str(exc)  # noqa: PT017 - counted, not awaited
                    refused += 1
        finally:
            process.kill()

    assert refused == 20
    assert all(version.startswith(f"{len(data)}-") for data, version in seen)


def test_a_missing_file_and_a_missing_root_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "root"
    storage = LocalStorage(root)
    storage.write("a.png", b"")

    with pytest.raises(ObjectNotFound) as caught:
        storage.read("b.png")
    assert not isinstance(caught.value, PlaceGone)
    shutil.rmtree(root)
    with pytest.raises(PlaceGone, match="mount or restore it"):
        storage.read("a.png")
