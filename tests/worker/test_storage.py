"""Do local disk and S3 keep the same promises, and each its own?"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.utils import parse_timestamp
from servers import S3Server

from vdsr.errors import FileTooLarge
from worker.errors import (
    AccessDenied,
    BadCredentials,
    ObjectNotFound,
    PlaceGone,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UnsafeKey,
    UsageError,
)
from worker.storage import Storage, s3
from worker.storage.local import LocalStorage
from worker.storage.s3 import S3Storage

REPOSITORY = Path(__file__).parents[2]


def keys(storage: Storage, *, after: str = "", recursive: bool = True) -> list[str]:
    return [entry.key for entry in storage.entries(after=after, recursive=recursive)]


def test_a_disk_without_attributes_keeps_marks_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.storage.local._set_attribute", lambda path, note: False)
    storage = LocalStorage(tmp_path)
    storage.write("a/b.png", b"one", mark="0123abc")
    assert storage.mark("a/b.png") == "0123abc"
    assert keys(storage) == ["a/b.png"]
    (tmp_path / "a" / "b.png").write_bytes(b"other")  # not by us
    assert storage.mark("a/b.png") == ""
    (tmp_path / ".vdsr" / "marks" / "a" / "b.png").write_text("[")
    assert storage.mark("a/b.png") == ""


# --- what both promise ----------------------------------------------------------------------------------------------


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


# --- what only a disk has -------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def local(root: Path) -> LocalStorage:
    return LocalStorage(root)


def test_a_local_uri_is_an_absolute_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert LocalStorage("root").uri == str(root)
    assert LocalStorage(root / ".." / "root").uri == str(root)


def test_folders_are_ordered_as_their_keys_are(local: LocalStorage) -> None:
    expected = ["a-b/c.png", "a.png", "a/b-c.png", "a/b.png", "a/b/c.png", "a0.png"]
    for key in reversed(expected):
        local.write(key, b"")
    assert keys(local) == expected
    assert keys(local, after="a") == expected
    assert keys(local, after="a/") == ["a/b-c.png", "a/b.png", "a/b/c.png", "a0.png"]


def test_folders_before_the_key_to_go_on_after_are_not_visited(
    local: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("a/b/c.png", "b/a/a.png", "b/c/d.png", "c/d.png"):
        local.write(key, b"")
    visited: list[str] = []
    scandir = os.scandir

    def watched_scandir(path: bytes) -> Any:
        visited.append(os.path.relpath(os.fsdecode(path), root))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched_scandir)
    assert keys(local, after="b/c") == ["b/c/d.png", "c/d.png"]
    assert visited == [".", "b", "b/c", "c"]


def test_a_name_that_is_not_utf8_is_listed_and_read_back(local: LocalStorage, root: Path) -> None:
    with open(os.fsencode(root) + b"/latin-\xe9.png", "wb") as file:
        file.write(b"data")
    assert keys(local) == ["latin-\udce9.png"]
    assert local.read("latin-\udce9.png") == b"data"
    local.write("copies/latin-\udce9.png", b"copy")
    assert os.listdir(os.fsencode(root) + b"/copies") == [b"latin-\xe9.png"]
    assert keys(local, after="latin-\udce9.png") == []


def test_symbolic_links_are_not_listed(local: LocalStorage, root: Path) -> None:
    local.write("real/a.png", b"")
    (root / "file.png").symlink_to(root / "real/a.png")
    (root / "folder").symlink_to(root / "real")
    (root / "loop").symlink_to(root)
    assert keys(local) == ["real/a.png"]


def test_the_root_itself_may_be_a_symbolic_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    linked = LocalStorage(tmp_path / "link")
    linked.write("a.png", b"data")
    assert linked.uri == str(tmp_path / "link")
    assert keys(linked) == ["a.png"]
    assert linked.read("a.png") == (root / "a.png").read_bytes() == b"data"


def test_nothing_is_read_or_written_through_a_link_out_of_the_root(
    local: LocalStorage, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(b"secret")
    (root / "folder").symlink_to(outside)
    (root / "file.png").symlink_to(outside / "secret.png")
    for key in ("folder/secret.png", "file.png"):
        with pytest.raises(UnsafeKey, match="symbolic link"):
            local.read(key)
        with pytest.raises(UnsafeKey, match="symbolic link"):
            local.exists(key)
    for key in ("folder/secret.png", "folder/new.png", "folder/new/new.png"):
        with pytest.raises(UnsafeKey, match="symbolic link"):
            local.write(key, b"changed")
        with pytest.raises(UnsafeKey, match="symbolic link"):
            local.create(key, b"changed")
    assert os.listdir(outside) == ["secret.png"]
    assert (outside / "secret.png").read_bytes() == b"secret"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(local: LocalStorage, root: Path) -> None:
    sibling = root.with_name("root2")
    sibling.mkdir()
    (root / "folder").symlink_to(sibling)
    with pytest.raises(UnsafeKey):
        local.write("folder/a.png", b"")


def test_a_link_that_stays_inside_is_read(local: LocalStorage, root: Path) -> None:
    local.write("real/a.png", b"data")
    (root / "folder").symlink_to("real")
    assert local.read("folder/a.png") == b"data"


def test_a_write_replaces_a_link_and_not_what_it_leads_to(local: LocalStorage, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"outside")
    (root / "a.png").symlink_to(tmp_path / "outside.png")
    assert local.create("a.png", b"inside") is False
    local.write("a.png", b"inside")
    assert (tmp_path / "outside.png").read_bytes() == b"outside"
    assert local.read("a.png") == b"inside"


def test_a_folder_that_vanishes_while_it_is_listed_is_left_out(local: LocalStorage, root: Path) -> None:
    for key in ("a.png", "b/c.png", "d.png", "e.png"):
        local.write(key, b"")
    listing = local.entries()
    assert next(listing).key == "a.png"
    shutil.rmtree(root / "b")
    (root / "d.png").unlink()
    assert [entry.key for entry in listing] == ["e.png"]


def test_a_missing_root_is_told_and_made_by_the_first_write(tmp_path: Path) -> None:
    missing = LocalStorage(tmp_path / "missing")
    with pytest.raises(ObjectNotFound, match=r"missing.*check the path"):
        list(missing.entries())
    assert not missing.exists("a.png")
    missing.write("a.png", b"")
    assert keys(missing) == ["a.png"]


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ObjectNotFound, match="Not a directory"):
        list(LocalStorage(tmp_path / "a.png").entries())


def test_a_file_in_the_place_of_a_folder_is_told(local: LocalStorage) -> None:
    local.write("a", b"data")
    for key in ("a/b.png", "a/b/c.png"):
        with pytest.raises(StorageError, match="folder where there is a file"):
            local.write(key, b"")
    local.write("b/c.png", b"")
    with pytest.raises(StorageError, match="is a folder"):
        local.write("b", b"")
    assert local.create("b", b"") is False


def test_pipes_and_sockets_are_neither_listed_nor_waited_for(local: LocalStorage, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert keys(local) == []
    assert not local.exists("pipe")
    with pytest.raises(StorageError, match="pipe"):
        local.read("pipe")


def test_files_get_the_permissions_that_the_umask_leaves(local: LocalStorage, root: Path) -> None:
    before = os.umask(0o027)
    try:
        local.write("written.png", b"")
        local.create("created.png", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "written.png").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "created.png").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EPERM, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.ENAMETOOLONG, UnsafeKey),
        (errno.EIO, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
        (errno.ETIMEDOUT, StorageUnavailable),
        (errno.EINVAL, StorageError),
    ],
)
def test_a_failed_write_is_named_leaves_the_old_file_and_no_other(
    local: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    local.write("a.png", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error) as caught:
        local.write("a.png", b"new")
    assert type(caught.value) is error
    assert str(root / "a.png") in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(error):
        local.create("b.png", b"new")
    assert os.listdir(root) == ["a.png"]
    assert local.read("a.png") == b"old"


def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    local: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: str, target: str) -> None:
        raise KeyboardInterrupt

    local.write("a.png", b"old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        local.write("a.png", b"new")
    assert os.listdir(root) == ["a.png"]
    assert local.read("a.png") == b"old"


def test_where_there_are_no_hard_links_one_creator_wins_all_the_same(
    local: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with ThreadPoolExecutor(8) as runners:
        won = list(runners.map(lambda runner: local.create("a.png", b"%d" % runner), range(8)))
    assert won.count(True) == 1
    assert local.read("a.png") == b"%d" % won.index(True)
    assert os.listdir(root) == ["a.png"]


def test_a_link_whose_answer_nfs_lost_is_still_won(local: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_lose_the_answer(source: str, target: str) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link_and_lose_the_answer)
    assert local.create("a.png", b"data") is True
    assert local.create("a.png", b"other") is False


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may do everything, so be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_root() -> Iterator[Path]:
    """A folder that others may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_folder_that_may_not_be_read_is_told_with_its_remedy(public_root: Path) -> None:
    local = LocalStorage(public_root)
    local.write("a.png", b"")
    local.write("locked/b.png", b"")
    (public_root / "locked").chmod(0)
    with without_privileges(), pytest.raises(AccessDenied, match=r"locked.*Permission denied.*chmod"):
        list(local.entries())
    with without_privileges(), pytest.raises(PermissionError):
        local.read("locked/b.png")
    (public_root / "locked").chmod(0o755)


def test_a_folder_that_may_not_be_written_is_told(public_root: Path) -> None:
    local = LocalStorage(public_root)
    local.write("locked/b.png", b"old")
    (public_root / "locked").chmod(0o555)
    for use in (local.write, local.create):
        with without_privileges(), pytest.raises(AccessDenied, match=r"locked.*Permission denied.*chmod"):
            use("locked/c.png", b"new")
    assert os.listdir(public_root / "locked") == ["b.png"]
    (public_root / "locked").chmod(0o755)


FILL_THE_DISK = """
import os, sys
from worker.errors import StorageFull
from worker.storage.local import LocalStorage

storage = LocalStorage(sys.argv[1])
storage.write("a.png", b"old")
for use in (storage.write, storage.create):
    try:
        use("a.png" if use == storage.write else "b.png", bytes(1_000_000))
    except StorageFull as exc:
        print(exc)
assert os.listdir(sys.argv[1]) == ["a.png"], os.listdir(sys.argv[1])
assert storage.read("a.png") == b"old"
"""


def test_a_full_disk_is_told_and_leaves_the_old_file(root: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k none "$1" || exit 77; shift; exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(root)]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here to mount a small disk with")
    command = [*unshare, sys.executable, "-c", FILL_THE_DISK, str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left on device; free some space") == 2


def test_the_storage_package_and_local_disk_do_without_boto3() -> None:
    program = "import sys, worker.storage, worker.storage.local; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0


# --- what only S3 has -----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Clients keep the credentials they were made with; make them anew for this test, and after it."""
    s3.clients.forget()
    yield
    s3.clients.forget()


@pytest.fixture
def credentials(aws_environment: None, fresh_clients: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some, for servers that do not look at them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")


def test_an_s3_uri_has_no_trailing_slash() -> None:
    assert S3Storage("bucket").uri == "s3://bucket"
    assert S3Storage("bucket", "my/path/").uri == "s3://bucket/my/path"


def test_a_prefix_that_could_leave_its_folder_is_refused() -> None:
    with pytest.raises(UnsafeKey):
        S3Storage("bucket", "my/../path")


@pytest.mark.s3
def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(s3_server: S3Server, bucket: str) -> None:
    whole = S3Storage(bucket, endpoint_url=s3_server.endpoint_url)
    for key in ("my/path/a.png", "my/path2/b.png", "my/path-3.png", "c.png"):
        whole.write(key, b"")
    folder = S3Storage(bucket, "my/path", endpoint_url=s3_server.endpoint_url)
    assert keys(folder) == ["a.png"]
    assert folder.exists("a.png")
    assert not folder.exists("b.png")
    assert sorted(keys(whole)) == ["c.png", "my/path-3.png", "my/path/a.png", "my/path2/b.png"]


@pytest.mark.s3
def test_a_listing_goes_on_over_more_than_one_page(s3_server: S3Server, bucket: str) -> None:
    storage = S3Storage(bucket, "many", endpoint_url=s3_server.endpoint_url)
    names = [f"{number:05}.png" for number in range(2010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(name, b""), names))
    assert keys(storage) == names
    assert keys(storage, after="00499.png") == names[500:]
    assert keys(storage, after="01500.png", recursive=False) == names[1501:]


@pytest.mark.s3
@pytest.mark.parametrize(
    "text",
    ["2026-11-23T18:00:01.250Z", "2026-11-23T18:00:01Z", "Tue, 24 Nov 2026 18:00:00 GMT", "1422172800", 1422172800.5],
)
def test_times_are_read_as_botocore_reads_them(text: str | float) -> None:
    assert s3._moment(text) == parse_timestamp(text)


def test_markers_that_stand_for_folders_are_not_listed(s3_server: S3Server, bucket: str) -> None:
    client = s3.clients.get(s3_server.endpoint_url, None)
    for name in ("folder/", "folder/sub/", "folder/sub/a.png"):
        client.put_object(Bucket=bucket, Key=name)
    assert keys(S3Storage(bucket, endpoint_url=s3_server.endpoint_url)) == ["folder/sub/a.png"]
    assert keys(S3Storage(bucket, "folder", endpoint_url=s3_server.endpoint_url)) == ["sub/a.png"]


@pytest.mark.s3
def test_the_version_is_the_etag(s3_server: S3Server, bucket: str) -> None:
    storage = S3Storage(bucket, endpoint_url=s3_server.endpoint_url)
    storage.write("a.png", b"data")
    (entry,) = storage.entries()
    assert entry.version == "8d777f385d3dfec8815d20f7496026dc"  # the MD5 of b"data"


@pytest.mark.s3
@pytest.mark.parametrize(
    ("key", "content_type"),
    [
        ("a.png", "image/png"),
        ("a.JPG", "image/jpeg"),
        ("a.webp", "image/webp"),
        ("part.jsonl", "application/x-ndjson"),
        ("data:text,a", "application/octet-stream"),
        ("weights.safetensors", "application/octet-stream"),
    ],
)
def test_objects_carry_the_content_type_of_their_name(
    s3_server: S3Server, bucket: str, key: str, content_type: str
) -> None:
    S3Storage(bucket, endpoint_url=s3_server.endpoint_url).write(key, b"x")
    head = s3.clients.get(s3_server.endpoint_url, None).head_object(Bucket=bucket, Key=key)
    assert head["ContentType"] == content_type


@pytest.mark.s3
def test_a_missing_bucket_is_told_with_its_server(s3_server: S3Server, bucket: str) -> None:
    storage = S3Storage("no-such-bucket", endpoint_url=s3_server.endpoint_url)
    uses: list[Callable[[], object]] = [
        lambda: list(storage.entries()),
        lambda: storage.read("a.png"),
        lambda: storage.write("a.png", b""),
        lambda: storage.create("a.png", b""),
    ]
    for use in uses:
        with pytest.raises(ObjectNotFound, match="bucket") as caught:
            use()
        assert "no-such-bucket" in str(caught.value)
        assert s3_server.endpoint_url in str(caught.value)


@pytest.mark.s3
def test_a_wrong_secret_is_refused_and_never_shown(
    s3_server: S3Server, bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-98765")
    storage = S3Storage(bucket, endpoint_url=s3_server.endpoint_url)
    uses: list[Callable[[], object]] = [
        lambda: list(storage.entries()),
        lambda: storage.read("a.png"),
        lambda: storage.exists("a.png"),
        lambda: storage.write("a.png", b"data"),
        lambda: storage.create("a.png", b"data"),
    ]
    for use in uses:
        with pytest.raises(AccessDenied, match=r"AWS_SECRET_ACCESS_KEY.*AWS_PROFILE") as caught:
            use()
        assert "wrong-secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.s3
def test_an_unknown_access_key_is_refused(
    s3_server: S3Server, bucket: str, fresh_clients: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(AccessDenied, match="InvalidAccessKeyId"):
        S3Storage(bucket, endpoint_url=s3_server.endpoint_url).read("a.png")


@pytest.mark.parametrize("profile", [None, "no-such-profile"])
def test_missing_credentials_are_told_with_their_remedy(
    aws_environment: None, fresh_clients: None, monkeypatch: pytest.MonkeyPatch, profile: str | None
) -> None:
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(AccessDenied, match=r"no usable credentials.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"):
        S3Storage("bucket", endpoint_url="http://127.0.0.1:9").read("a.png")


def test_a_server_that_is_down_is_told_within_seconds(credentials: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint_url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    storage = S3Storage("bucket", endpoint_url=endpoint_url)
    start = time.monotonic()
    with pytest.raises(StorageUnavailable, match=endpoint_url):
        storage.read("a.png")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("endpoint_url", ["http://user:hidden@127.0.0.1", "127.0.0.1:9000", "ftp://127.0.0.1", ""])
def test_an_endpoint_that_is_no_plain_url_is_refused_without_showing_a_password(endpoint_url: str) -> None:
    with pytest.raises(UsageError, match="S3 endpoint") as caught:
        S3Storage("bucket", endpoint_url=endpoint_url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("key", ["k" * 1016, "사" * 339, "\udce9.png"], ids=["bytes", "Korean", "not UTF-8"])
def test_a_name_that_s3_cannot_hold_is_refused_before_it_is_sent(key: str) -> None:
    storage = S3Storage("bucket", "folder/2", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(UnsafeKey):
        storage.write(key, b"")


def test_an_object_too_large_for_one_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3.MAX_PUT_BYTES == 5_368_709_120
    monkeypatch.setattr(s3, "MAX_PUT_BYTES", 10)
    storage = S3Storage("bucket", endpoint_url="http://127.0.0.1:9")
    for use in (storage.write, storage.create):
        with pytest.raises(StorageError, match="11 bytes, over the limit of 10"):
            use("a.png", bytes(11))


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("NoSuchKey", 404, ObjectNotFound),
        ("404", 404, ObjectNotFound),
        ("AccessDenied", 403, AccessDenied),
        ("403", 403, AccessDenied),
        ("SignatureDoesNotMatch", 403, AccessDenied),
        ("RequestTimeTooSkewed", 403, AccessDenied),
        ("ExpiredToken", 400, BadCredentials),
        ("InvalidAccessKeyId", 403, BadCredentials),
        ("NoSuchBucket", 404, PlaceGone),
        ("InternalError", 500, StorageUnavailable),
        ("SlowDown", 503, StorageUnavailable),
        ("RequestTimeout", 400, StorageUnavailable),
        ("TooManyRequests", 429, StorageUnavailable),
        ("OperationAborted", 409, StorageUnavailable),
        ("QuotaExceeded", 403, StorageFull),
        ("XMinioStorageFull", 507, StorageFull),
        ("KeyTooLongError", 400, UnsafeKey),
        ("InvalidObjectState", 403, StorageError),
        ("AuthorizationHeaderMalformed", 400, StorageError),
    ],
)
def test_what_a_server_answers_is_named(
    monkeypatch: pytest.MonkeyPatch, code: str, status: int, error: type[Exception]
) -> None:
    class Refusing:
        def get_object(self, **request: str) -> None:
            answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(answer, "GetObject")

    monkeypatch.setattr(s3.clients, "get", lambda endpoint_url, region: Refusing())
    with pytest.raises(error) as caught:
        S3Storage("bucket", "folder").read("a.png")
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"s3://bucket/folder/a.png: Amazon S3 answers {code}; ")


def test_threads_share_a_client_and_processes_do_not(credentials: None) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: s3.clients.get("http://127.0.0.1:9", None), range(8)))
    (ours,) = made

    def look() -> None:
        sys.exit(s3.clients.get("http://127.0.0.1:9", None) is ours)

    child = multiprocessing.get_context("fork").Process(target=look)
    child.start()
    child.join(60)
    assert child.exitcode == 0


# --- what a server does when it fails: a server that follows a script ------------------------------------------------

Answer = Callable[["ScriptedHandler"], None]


class ScriptedS3(ThreadingHTTPServer):
    """Gives one answer after the other, and the last again and again."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answers = list(answers)
        self.methods: list[str] = []
        self.writers: list[str] = []
        self.expectations: list[str | None] = []

    def __enter__(self) -> ScriptedS3:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def storage(self) -> S3Storage:
        return S3Storage("bucket", endpoint_url=f"http://127.0.0.1:{self.server_port}")


class ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedS3

    def handle_request(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.methods.append(self.command)
        self.server.expectations.append(self.headers.get("Expect"))
        if self.command == "PUT":
            self.server.writers.append(self.headers.get("x-amz-meta-vdsr-writer", ""))
        answers = self.server.answers
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    do_GET = do_HEAD = do_PUT = handle_request  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Nothing, on stderr."""


def answer(
    status: int = 200, body: bytes = b"", *, length: int | None = None, headers: dict[str, str] | None = None
) -> Answer:
    def send(handler: ScriptedHandler) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return send


def refusal(status: int, code: str) -> Answer:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


def hang_up(handler: ScriptedHandler) -> None:
    handler.close_connection = True


def own_object(handler: ScriptedHandler) -> None:
    answer(headers={"x-amz-meta-vdsr-writer": handler.server.writers[0]})(handler)


def test_a_body_that_breaks_off_is_fetched_again(credentials: None) -> None:
    with ScriptedS3(answer(body=b"hal", length=6), answer(body=b"halves", headers={"ETag": '"1"'})) as server:
        assert server.storage.read("a.png") == b"halves"
        assert server.methods == ["GET", "GET"]


def test_a_body_that_always_breaks_off_is_told(credentials: None) -> None:
    with ScriptedS3(answer(body=b"hal", length=6)) as server:
        with pytest.raises(StorageUnavailable, match=r"no whole answer from http://127\.0\.0\.1"):
            server.storage.read("a.png")
        assert server.methods == ["GET"] * 3


def test_a_server_that_always_fails_is_told_after_some_attempts(credentials: None) -> None:
    with ScriptedS3(refusal(500, "InternalError")) as server:
        with pytest.raises(StorageUnavailable, match="InternalError"):
            server.storage.write("a.png", b"data")
        assert server.methods == ["PUT"] * 7


def test_a_swapper_whose_answer_is_lost_still_wins(credentials: None) -> None:
    with ScriptedS3(hang_up, refusal(412, "PreconditionFailed"), own_object) as server:
        assert server.storage.swap("a.png", b"data", '"1"') is True
        assert server.methods == ["PUT", "PUT", "HEAD"]


def test_a_creator_whose_answer_is_lost_still_wins(credentials: None) -> None:
    with ScriptedS3(hang_up, refusal(412, "PreconditionFailed"), own_object) as server:
        assert server.storage.create("a.png", b"data") is True
        assert server.methods == ["PUT", "PUT", "HEAD"]


def test_a_creator_whose_request_is_lost_does_not_take_anothers_object_for_its_own(credentials: None) -> None:
    others = answer(headers={"x-amz-meta-vdsr-writer": "somebody else"})
    with ScriptedS3(hang_up, refusal(412, "PreconditionFailed"), others) as server:
        assert server.storage.create("a.png", b"data") is False


def test_a_conflict_between_creators_is_tried_again(credentials: None) -> None:
    conflict = refusal(409, "ConditionalRequestConflict")
    with ScriptedS3(conflict, refusal(412, "PreconditionFailed")) as server:
        assert server.storage.create("a.png", b"data") is False
    with ScriptedS3(conflict, answer()) as server:
        assert server.storage.create("a.png", b"data") is True
        assert server.methods == ["PUT", "PUT"]


def test_a_conflict_between_creators_that_does_not_end_is_told(
    credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CONFLICT_PAUSES_S", (0.0, 0.0))
    with ScriptedS3(refusal(409, "ConditionalRequestConflict")) as server:
        with pytest.raises(StorageUnavailable, match="at the same time"):
            server.storage.create("a.png", b"data")
        assert server.methods == ["PUT"] * 2


def test_only_a_large_body_waits_until_it_is_welcome(credentials: None) -> None:
    with ScriptedS3(answer()) as server:
        for size_bytes in (0, 1, 2_097_151, 2_097_152):
            server.storage.write("a.png", bytes(size_bytes))
        assert server.expectations == [None, None, None, "100-continue"]
