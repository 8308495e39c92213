"""Does a local disk keep the promises that only it can make?"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from worker.errors import (
    AccessDenied,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
    UnsafeKey,
)
from worker.storage import Storage
from worker.storage.local import LocalStorage

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
