"""Jobs whose objects have hostile or unlucky names: nothing is written outside the destination, nothing is replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Service, vdsr, wait_until
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from proxy import Proxy, Rule, holding, listing
from servers import child_process

from worker.errors import NameCollision, StorageError, UsageError
from worker.storage.local import LocalStorage
from worker.storage.s3 import S3Storage

pytestmark = [pytest.mark.redis, pytest.mark.s3]

LONG = "/".join(["d" * 199] * 4 + ["n" * 194 + ".png"])  # with "in/": 1,002 bytes
UNSAFE = [
    "../up.png",
    "../../../../up.png",
    "..",
    "a/../b.png",
    "a/../../../b.png",
    "/absolute.png",
    "//etc/absolute.png",
    "a//b.png",
    "a/./b.png",
    "nul\0.png",
    "back\\slash.png",
]
NO_IMAGES = ["tail.png/", "/", "folder//"]
HIDDEN = ["..png", "..\\up.png", "a/.b.png"]
GOOD = [
    " leading.png",
    "trailing .png",
    "new\nline.png",
    "tab\tand\x7f.png",
    "'quotes\".png",
    "100%.png",
    "a%2Fb.png",
    "plus+and&.png",
    "#?;.png",
    "*.png",
    "-rf.png",
    "~root.png",
    "$(touch x).png",
    "dots.../x...png",
    "사진/고양이 🐈.png",
    "👩‍👩‍👧.png",
    unicodedata.normalize("NFC", "é.png"),
    unicodedata.normalize("NFD", "é.png"),
    "case.png",
    "Case.png",
    "CASE/x.png",
    "n" * 251 + ".png",
    "aux.png",
    "\u202egnp.exe.png",
]


@pytest.fixture
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small picture's bytes."""
    path = tmp_path_factory.mktemp("png") / "a.png"
    Image.linear_gradient("L").resize((6, 4)).save(path)
    return path.read_bytes()


def files(folder: Path) -> set[str]:
    """Every file that is no record, relative to a folder."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return {str(p) for p in found if ".vdsr" not in p.parts}


def test_names_that_would_leave_the_destination_are_failures_and_write_nothing(
    service: Service, proxy: Proxy, bucket: str, png: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b" / "c" / "out"
    keys = [f"in/{key}" for key in sorted([*UNSAFE, *NO_IMAGES, *HIDDEN, *GOOD])]

    with proxy.spoiling(
        Rule("LIST", "", listing(keys, len(png)), times=None), Rule("GET", "^in/", holding(png), times=None)
    ):
        summary = service.run(f"s3://{bucket}/in", out, score=False)

    rows = service.rows(summary["id"])
    assert {key: row.code for key, row in rows.items() if row.code} == {
        key: "unsafe_name" for key in UNSAFE if key.endswith(".png")
    }
    assert summary["images"]["done"] == len(GOOD)
    assert summary["images"]["total"] + summary["images"]["ignored"] == len(keys) - len(HIDDEN)
    assert files(tmp_path) == {f"a/b/c/out/{key}" for key in GOOD}


def test_s3_keys_as_long_as_they_may_be_are_done_and_longer_outputs_are_told(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, png: bytes
) -> None:
    room = 1024 - len("out/")
    fits, over = (LONG[:-4] + "y" * (size - len(LONG)) + ".png" for size in (room, room + 1))
    for key in (fits, over):
        outside.write(f"in/{key}", png)

    summary = service.run(f"s3://{bucket}/in", f"s3://{bucket}/out", score=False)

    rows = service.rows(summary["id"])
    assert {key: row.code for key, row in rows.items()} == {fits: None, over: "unsafe_name"}
    assert "1,025 bytes, over S3's limit of 1,024" in rows[over].message
    assert outside.exists(f"out/{fits}")


def test_names_that_a_disk_can_hold_go_from_disk_to_disk_and_to_s3(
    service: Service, proxy: Proxy, bucket: str, outside: S3Storage, png: bytes, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    foreign = [b"caf\xe9.png", b"\xff\xfe/x.png", b"\xed\xa0\x80.png"]  # Latin-1, no text at all, half of a pair
    for name in [*map(os.fsencode, GOOD), *foreign, b"back\\slash.png"]:
        path = os.path.join(os.fsencode(source), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(png)

    to_disk = service.run(source, tmp_path / "out", score=False)
    to_s3 = service.run(source, f"s3://{bucket}/out", score=False)

    assert to_disk["failures"] == {"unsafe_name": 1}
    assert files(tmp_path / "out") == {*GOOD, *map(os.fsdecode, foreign)}
    assert to_s3["failures"] == {"unsafe_name": 4}
    rows = service.rows(to_s3["id"])
    assert {key for key, row in rows.items() if row.code} == {*map(os.fsdecode, foreign), "back\\slash.png"}
    target = S3Storage(bucket, "out", endpoint_url=outside._endpoint_url)
    assert sorted(entry.key for entry in target.entries()) == sorted(GOOD)


def test_a_name_that_grows_too_long_with_its_new_suffix_is_told(service: Service, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ("n" * 251 + ".png")).write_bytes(png)

    summary = service.run(tmp_path / "in", tmp_path / "out", format="webp", score=False)

    assert summary["failures"] == {"unsafe_name": 1}
    assert files(tmp_path / "out") == set()


def test_every_command_prints_names_that_are_not_utf8(service: Service, png: bytes, tmp_path: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))
    source.mkdir()
    (source / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"")
    (source / os.fsdecode(b"ok\xff.png")).write_bytes(png)
    environment = {**os.environ, **service.environment, "PYTHONIOENCODING": "utf-8", "LC_ALL": "C.UTF-8"}

    submitted = vdsr(environment, "submit", source, "--wait", "--json")
    job_id = service.client.ledger.job_ids()[0]
    results = [
        vdsr(environment, "status", job_id, "--failed", "--json"),
        vdsr(environment, "status", job_id, "--json"),
        vdsr(environment, "list", "--json"),
    ]
    texts = [vdsr(environment, *words) for words in (["status", job_id], ["status", job_id, "--failed"], ["list"])]

    assert submitted.returncode == 3, submitted.stderr
    assert [r.returncode for r in results] == [0] * 3, [r.stderr for r in results]
    assert json.loads(results[0].stdout)[0]["key"] == os.fsdecode(b"caf\xe9\n.png")
    assert [r.returncode for r in texts] == [0] * 3, [r.stderr for r in texts]
    assert r"caf\udce9\n.png" in texts[1].stdout


parts = some.sampled_from(["..", ".", "", "a", "b.png", "é", "\0", "\\", "..\\..", "~", "\udce9", "x" * 300, "\n"])


@settings(max_examples=400, deadline=None)
@given(some.lists(parts, min_size=1, max_size=6).map("/".join))
def test_whatever_a_key_says_a_write_stays_below_its_root(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    top = tmp_path_factory.mktemp("top", numbered=True)
    root = top / "one" / "two" / "root"
    storage = LocalStorage(root)

    for use in (storage.write, storage.create):
        try:
            use(key, b"data")
        except StorageError:
            continue
        assert storage.read(key) == b"data"
    assert all(name.startswith("one/two/root/") for name in files(top))


# --- names that a disk takes for one --------------------------------------------------------------------------------


@pytest.fixture
def folding_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted disk that tells neither upper from lower case nor forms of Unicode apart."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting takes root, and /dev/fuse")
    folder = tmp_path / "folding"
    folder.mkdir()
    program = str(Path(__file__).parents[2] / "folding.py")
    try:
        with child_process([sys.executable, program, str(folder)], tmp_path / "folding.log") as process:
            wait_until(lambda: os.path.ismount(folder) or process.poll() is not None)
            if process.poll() is not None:  # root of a container may not mount
                pytest.skip(f"a disk cannot be mounted here: {(tmp_path / 'folding.log').read_text()[-200:]}")
            yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)


TWINS = ["Sub/0001.png", "a.PNG", "a.png", "sub/0001.png", *(unicodedata.normalize(f, "é.png") for f in ("NFC", "NFD"))]


def make_twins(folder: Path, png: bytes) -> None:
    for key in [*TWINS, "alone.png"]:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(png)


def test_names_that_differ_in_case_or_form_only_are_all_done_where_the_disk_tells_them_apart(
    service: Service, png: bytes, tmp_path: Path
) -> None:
    make_twins(tmp_path / "in", png)

    summary = service.run(tmp_path / "in", tmp_path / "out", score=False)

    assert summary["images"]["done"] == 7
    assert files(tmp_path / "out") == {*TWINS, "alone.png"}


def test_names_that_the_destination_takes_for_one_are_refused_before_work_starts(
    service: Service, folding_disk: Path, png: bytes, tmp_path: Path
) -> None:
    make_twins(tmp_path / "in", png)
    jobs = len(service.client.ledger.job_ids())

    with pytest.raises(UsageError, match=r"2 inputs map to names that .*folding/out takes for one \(a.PNG, a.png\)"):
        service.submit(tmp_path / "in", folding_disk / "out")

    assert len(service.client.ledger.job_ids()) == jobs
    assert list(folding_disk.iterdir()) == []


def test_beyond_the_first_page_the_later_of_two_such_names_fails_and_replaces_nothing(
    service: Service, folding_disk: Path, png: bytes, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    make_twins(source / "z", png)
    (source / "many").mkdir()
    for n in range(1000):
        (source / "many" / f"{n:04d}.png").write_bytes(b"")

    summary = service.run(source, folding_disk / "out", score=False)
    first = {p: p.stat().st_mtime_ns for p in (folding_disk / "out" / "z").rglob("*.*")}
    service.client.retry(summary["id"])
    again = service.wait(summary["id"])

    assert summary["failures"] == {"empty": 1000, "name_collision": 3}
    assert summary["images"]["done"] == 4
    assert len(first) == 4
    assert again["failures"] == summary["failures"]
    assert {p: p.stat().st_mtime_ns for p in first} == first


def test_the_disk_that_folds_names_replaces_a_file_under_its_own_name_only(folding_disk: Path) -> None:
    storage = LocalStorage(folding_disk / "root")
    storage.write("Sub/a.png", b"old")
    storage.write("Sub/a.png", b"new")

    for other in ("Sub/A.png", "sub/a.png", "SUB/A.PNG"):
        with pytest.raises(NameCollision, match="which would be replaced; rename one of them"):
            storage.write(other, b"other")
    storage.write("sub/b.png", b"beside")

    assert storage.read("Sub/a.png") == b"new"
    assert storage.folds_names()
    assert sorted(entry.key for entry in storage.entries()) == ["Sub/a.png", "Sub/b.png"]
    assert not list((folding_disk / "root").rglob(".*"))


def test_of_many_writers_of_two_such_names_one_name_wins(folding_disk: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    storage = LocalStorage(folding_disk)

    def write(n: int) -> str | None:
        name = ("a{}.png" if n % 2 else "A{}.png").format(n // 8)
        try:
            storage.write(name, name.encode())
        except NameCollision:
            return None
        return name

    with ThreadPoolExecutor(8) as runners:
        written = {name for name in runners.map(write, range(400)) if name}

    listed = {entry.key for entry in storage.entries()}
    assert listed == written
    assert len(listed) == 50
    assert all(storage.read(name) == name.encode() for name in listed)


def test_a_disk_that_tells_names_apart_is_known_as_such(tmp_path: Path) -> None:
    assert not LocalStorage(tmp_path / "not" / "there" / "yet").folds_names()
    assert list(tmp_path.iterdir()) == []


def test_two_inputs_for_one_output_are_refused_in_s3_too(
    service: Service, bucket: str, outside: S3Storage, png: bytes
) -> None:
    for key in ("a.png", "a.bmp"):
        outside.write(f"in/{key}", png)

    with pytest.raises(UsageError, match=r"2 inputs map to a.png \(a.bmp, a.png\)"):
        service.submit(f"s3://{bucket}/in", f"s3://{bucket}/out", format="png")

    assert not list(S3Storage(bucket, "out", endpoint_url=outside._endpoint_url).entries())
