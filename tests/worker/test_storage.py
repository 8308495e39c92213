"""Do local disk and S3 keep the same promises?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import S3Server

from vdsr.errors import FileTooLarge
from worker.errors import (
    ObjectNotFound,
    StorageError,
    UnsafeKey,
)
from worker.storage import Storage
from worker.storage.local import LocalStorage
from worker.storage.s3 import S3Storage


def keys(storage: Storage, *, after: str = "", recursive: bool = True) -> list[str]:
    return [entry.key for entry in storage.entries(after=after, recursive=recursive)]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        root = tmp_path / "root"
        root.mkdir()
        return LocalStorage(root)
    bucket: str = request.getfixturevalue("bucket")
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Storage(bucket, "my/path", endpoint_url=server.endpoint_url)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 20_480], ids=["nothing", "a byte", "5 MiB"])
def test_what_is_written_is_read_back(storage: Storage, data: bytes) -> None:
    storage.write("a.png", data)
    assert storage.read("a.png") == data
    assert storage.exists("a.png")


@pytest.mark.parametrize(
    "key",
    [
        "2019/여름/고양이 사진.png",
        "😀/🏳️‍🌈.png",
        "e\u0301 is not \u00e9.png",
        "a b+c&d%25;e=f?g#h.png",
        "\"quoted\" 'name' [1] {2} *.png",
        "tab\there, line\nthere.png",
        " leading and trailing ",
        "-",
        "n" * 255,
        "x/" + "사" * 85,
    ],
)
def test_names_come_back_from_a_listing_as_they_were_given(storage: Storage, key: str) -> None:
    storage.write(key, b"data")
    assert keys(storage) == [key]
    assert storage.read(key) == b"data"
    assert storage.exists(key)


def test_a_write_replaces_the_object(storage: Storage) -> None:
    storage.write("a.png", b"old and longer")
    storage.write("a.png", b"new")
    assert storage.read("a.png") == b"new"
    assert keys(storage) == ["a.png"]


def test_a_mark_stays_with_its_object_and_goes_with_it(storage: Storage) -> None:
    assert storage.mark("a/b.png") is None
    storage.write("a/b.png", b"one", mark="0123abc")
    assert storage.mark("a/b.png") == "0123abc"
    assert storage.read("a/b.png") == b"one"
    storage.write("a/b.png", b"two")
    assert storage.mark("a/b.png") == ""
    assert keys(storage) == ["a/b.png"]


def test_a_missing_object_is_not_found(storage: Storage) -> None:
    storage.write("a.png", b"")
    assert not storage.exists("b.png")
    assert not storage.exists("a.png/b.png")
    with pytest.raises(ObjectNotFound, match=r"b\.png"):
        storage.read("b.png")
    with pytest.raises(FileNotFoundError):
        storage.read("a.png/b.png")


def test_a_folder_is_not_an_object(storage: Storage) -> None:
    storage.write("folder/a.png", b"")
    assert not storage.exists("folder")
    with pytest.raises(StorageError, match="folder"):
        storage.read("folder")


def test_an_entry_tells_key_and_size(storage: Storage) -> None:
    storage.write("folder/a.png", b"12345")
    (entry,) = storage.entries()
    assert (entry.key, entry.size_bytes) == ("folder/a.png", 5)


def test_the_version_changes_with_the_content_and_only_with_it(storage: Storage) -> None:
    def version() -> str:
        (entry,) = storage.entries()
        return entry.version

    storage.write("a.png", b"old")
    old = version()
    assert version() == old
    storage.write("a.png", b"newer")
    assert version() != old


def test_nothing_is_listed_where_nothing_is(storage: Storage) -> None:
    assert keys(storage) == []


def test_an_object_over_the_limit_is_not_read(storage: Storage) -> None:
    storage.write("a", bytes(10))

    assert storage.read("a", max_bytes=10) == bytes(10)
    with pytest.raises(FileTooLarge, match=r"10 bytes, over the limit of 9; .*VDSR_MAX_FILE_BYTES"):
        storage.read("a", max_bytes=9)
    assert storage.read("a") == bytes(10)


def test_hidden_names_are_left_out_of_listings_but_can_be_read(storage: Storage) -> None:
    storage.write(".vdsr/job/part.jsonl", b"part")
    storage.write("a/.DS_Store", b"")
    storage.write("a/.cache/b.png", b"")
    storage.write("a/b.png", b"")
    assert keys(storage) == ["a/b.png"]
    assert storage.read(".vdsr/job/part.jsonl") == b"part"


def test_a_flat_listing_does_not_enter_folders(storage: Storage) -> None:
    for key in ("a/b.png", "b.png", "c.png", "d/e/f.png"):
        storage.write(key, b"")
    assert keys(storage, recursive=False) == ["b.png", "c.png"]
    assert keys(storage, after="b.png", recursive=False) == ["c.png"]


def test_a_listing_is_in_byte_order(storage: Storage) -> None:
    expected = ["A.png", "B/a.png", "B/b/c.png", "Z.png", "_.png", "a.png", "é.png", "가.png", "\uffff.png", "😀.png"]
    for key in reversed(expected):
        storage.write(key, b"")
    assert keys(storage) == expected


def test_a_listing_taken_up_after_any_of_its_keys_goes_on_with_the_next(storage: Storage) -> None:
    names = [
        "a-b/c.png",
        "a.png",
        "a/b-c.png",
        "a/b.png",
        "a/b/c.png",
        "a/b/d.png",
        "a0",
        "b.png",
        "c/d/e.png",
        "가/나.png",
    ]
    for key in names:
        storage.write(key, b"")
    listed = keys(storage)
    assert sorted(listed) == sorted(names)
    for position, key in enumerate(listed):
        assert keys(storage, after=key) == listed[position + 1 :]


def test_a_listing_can_be_taken_up_after_a_key_that_is_gone(storage: Storage) -> None:
    for key in ("a.png", "c.png", "d/e.png", "f/g.png"):
        storage.write(key, b"")
    assert keys(storage, after="b.png") == ["c.png", "d/e.png", "f/g.png"]
    assert keys(storage, after="d/a.png") == ["d/e.png", "f/g.png"]
    assert keys(storage, after="d/x.png") == ["f/g.png"]
    assert keys(storage, after="z.png") == []


def test_an_object_is_swapped_only_if_it_is_still_what_was_read(storage: Storage) -> None:
    storage.write("a.json", b"one")
    data, tag = storage.read_tagged("a.json")
    assert data == b"one"

    assert storage.swap("a.json", b"two", tag)
    assert not storage.swap("a.json", b"three", tag)

    assert storage.read("a.json") == b"two"
    assert not storage.swap("never.json", b"three", tag)
    assert not storage.exists("never.json")
    assert [entry.key for entry in storage.entries()] == ["a.json"]


def test_an_object_is_created_once(storage: Storage) -> None:
    assert storage.create("folder/a.png", b"first") is True
    assert storage.create("folder/a.png", b"second") is False
    assert storage.read("folder/a.png") == b"first"
    assert keys(storage) == ["folder/a.png"]


def test_of_eight_creators_at_the_same_time_exactly_one_wins(storage: Storage) -> None:
    for race in range(3):
        start = threading.Barrier(8)

        def create(runner: int, key: str = f"race-{race}", start: threading.Barrier = start) -> bool:
            start.wait()
            return storage.create(key, b"%d" % runner)

        with ThreadPoolExecutor(8) as runners:
            won = list(runners.map(create, range(8)))
        assert won.count(True) == 1
        assert storage.read(f"race-{race}") == b"%d" % won.index(True)


def test_readers_never_see_half_a_write(storage: Storage) -> None:
    whole = {b"a" * 300_000, b"b" * 500_000}
    storage.write("a.png", min(whole))
    done = threading.Event()

    def replace_in_a_loop() -> None:
        try:
            for _ in range(30):
                for data in whole:
                    storage.write("a.png", data)
        finally:
            done.set()

    reads = 0
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace_in_a_loop)
        while not done.is_set():
            assert storage.read("a.png") in whole
            reads += 1
        writer.result()
    assert reads > 10
    assert keys(storage) == ["a.png"]


@pytest.mark.parametrize(
    "key", ["", ".", "..", "/etc/passwd", "../a.png", "a/../../b.png", "a/./b", "a//b", "a/", "a\\b", "a\0b"]
)
def test_a_name_that_could_leave_its_folder_is_refused(storage: Storage, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: storage.read(key),
        lambda: storage.exists(key),
        lambda: storage.write(key, b""),
        lambda: storage.create(key, b""),
    ]
    for use in uses:
        with pytest.raises(UnsafeKey, match="rename"):
            use()


@pytest.mark.parametrize("key", ["n" * 256, "lone surrogate \ud800.png"], ids=["256 bytes", "surrogate"])
def test_a_name_that_the_storage_cannot_hold_is_refused(storage: Storage, key: str) -> None:
    with pytest.raises(UnsafeKey):
        storage.write(key, b"data")
    with pytest.raises(UnsafeKey):
        storage.create(key, b"data")
    assert keys(storage) == []
