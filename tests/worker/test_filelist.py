"""Are just the named files done, on disk and in S3, and is whatever is wrong with a name told?"""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from pathlib import Path

import pytest
import servers
from helpers import Service, make_photos

from worker import filelist
from worker.client import draft
from worker.errors import UsageError
from worker.filelist import Named, named_entries, read_names
from worker.forecast import forecast
from worker.jobs import Job, Model, Options
from worker.plan import Listing
from worker.report.files import command
from worker.settings import load_settings
from worker.uris import open_storage

SETTINGS = dataclasses.replace(load_settings({}), chunk_images=7, chunk_megapixels=1000)


def job(source: str | Path, named: Named, **options: object) -> Job:
    return Job("j", str(source), f"{source}-x2", Options(**options), Model("v", "0"), named=named.facts)


def keys(job: Job, cursor: str = "", named: Named | None = None) -> list[str]:
    listing = Listing(job, SETTINGS, "cpu", cursor, named)
    found: list[str] = []
    while True:
        part = listing.take()
        found += [image.key for image in part.images]
        if part.last:
            return found


def test_names_are_understood_as_find_and_people_write_them() -> None:
    text = b"b.png\n\n./a/c.jpg\r\n/data/photos/d.png\nb.png\n\xff.png\n"
    named = read_names(text, "/data/photos")
    assert named.keys == ("a/c.jpg", "b.png", "d.png", "\udcff.png")
    assert read_names(b"two\nlines.png\0b.png\0", "/data/photos", null=True).keys == ("b.png", "two\nlines.png")
    assert read_names(b"s3://bucket/p/x.png", "s3://bucket/p").keys == ("x.png",)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "s3://other/a.png", "/data/photos2/a.png"])
def test_a_name_outside_the_source_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(UsageError, match="line 2 of --files-from is "):
        read_names(f"good.png\n{name}\n".encode(), "/data/photos")


def test_a_list_without_names_is_refused() -> None:
    with pytest.raises(UsageError, match="names no file"):
        read_names(b"\n \n", "/data/photos")


def test_only_what_is_named_is_listed_in_the_order_of_a_listing(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 30)
    (photos / "notes.txt").touch()
    (photos / ".hidden.png").touch()
    (photos / "link.png").symlink_to(photos / "0001.png")
    wanted = ["sub/0003.jpg", "0002.png", "sub/0001.png", "gone.png", "notes.txt", ".hidden.png", "link.png"]
    named = read_names("\n".join(wanted).encode(), str(photos))
    chosen = job(photos, named)

    part = Listing(chosen, SETTINGS, "cpu", "", named).take()

    told = {image.key: image.problem and image.problem[0] for image in part.images}
    assert list(told) == ["0002.png", "gone.png", "link.png", "sub/0001.png", "sub/0003.jpg"]
    assert {key for key, problem in told.items() if problem} == {"gone.png", "link.png"}
    assert told["gone.png"] == "not_found"
    assert part.ignored == 1
    assert keys(job(photos, named, include=("sub/*",)), named=named) == ["sub/0001.png", "sub/0003.jpg"]
    assert "sub/0001.png" not in keys(job(photos, named, recursive=False), named=named)


def test_a_planner_goes_on_from_any_cursor_in_a_list_of_many_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelist, "PART", 4)
    photos = make_photos(tmp_path / "p", 30)
    every = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.*g"))
    named = read_names("\n".join(every).encode(), str(photos))
    chosen = job(photos, named)
    named.write(chosen, SETTINGS)
    assert len(list((tmp_path / "p-x2/.vdsr/j/files").iterdir())) == 8

    listing, seen = Listing(chosen, SETTINGS, "cpu", ""), 0
    assert keys(chosen) == every
    while True:
        part = listing.take()
        seen += len(part.images)
        if part.last:
            break
        assert keys(chosen, part.cursor) == every[seen:]
    assert seen == 30


def test_a_hundred_thousand_names_are_read_written_and_found_again(tmp_path: Path) -> None:
    names = [f"{n % 1000:03d}/{n:07d}.png" for n in range(100_000)]
    random.Random(0).shuffle(names)
    named = read_names("\n".join(names).encode(), str(tmp_path / "p"))
    chosen = job(tmp_path / "p", named)
    assert named.facts[0] == 100_000
    named.write(chosen, SETTINGS)
    del named, names

    tracemalloc.start()
    entries = named_entries(chosen, SETTINGS, "998/0099998.png")
    assert [next(entries).key for _ in range(2)] == ["999/0000999.png", "999/0001999.png"]
    assert tracemalloc.get_traced_memory()[1] < 20 << 20  # a planner holds some parts, never the list
    tracemalloc.stop()


def test_objects_are_named_in_s3_as_files_are_on_disk(bucket: str, s3_server: servers.S3Server, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, s3_endpoint_url=s3_server.endpoint_url)
    store = open_storage(f"s3://{bucket}/p", settings)
    for path in make_photos(tmp_path / "p", 6).rglob("*.*g"):
        store.write(str(path.relative_to(tmp_path / "p")), path.read_bytes())
    named = read_names(f"./0002.png\ngone.png\ns3://{bucket}/p/sub/0001.png\n".encode(), f"s3://{bucket}/p")
    chosen = draft(f"s3://{bucket}/p", None, Options(), settings, named=named)
    named.write(chosen, settings)

    part = Listing(chosen, settings, "cpu", "").take()

    listed = {entry.key: entry for entry in store.entries()}
    assert [(image.key, image.problem and image.problem[0]) for image in part.images] == [
        ("0002.png", None),
        ("gone.png", "not_found"),
        ("sub/0001.png", None),
    ]
    assert part.images[0].version == listed["0002.png"].version
    assert part.images[0].size_bytes == listed["0002.png"].size_bytes
    found = forecast(chosen, settings, None, named=named)
    assert (found.total, found.todo, dict(found.refused)) == (3, 2, {"not_found": 1})


def test_a_job_does_what_is_named_and_the_rest_stays_undone(service: Service, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 8)
    named = read_names(b"0002.png\ngone.png\nsub/0001.png\n", str(photos))
    chosen = draft(str(photos), None, Options(), service.settings, named=named)

    job_id = service.client.submit(chosen, named)
    service.wait(job_id)

    rows = service.rows(job_id)
    assert {key: (row.outcome, row.code) for key, row in rows.items()} == {
        "0002.png": ("done", None),
        "gone.png": ("failed", "not_found"),
        "sub/0001.png": ("done", None),
    }
    assert Job.from_json((tmp_path / f"p-x2/.vdsr/{job_id}/job.json").read_text()).named == named.facts
    assert "--files-from LIST" in command(chosen)


def test_one_file_and_a_list_exclude_each_other(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 1)
    named = read_names(b"0000.jpg", str(photos))
    with pytest.raises(UsageError, match="is one file; --files-from names files of a folder"):
        draft(str(photos / "0000.jpg"), None, Options(), SETTINGS, named=named)
