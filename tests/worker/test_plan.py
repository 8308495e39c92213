"""Names, places and listings: what a job consists of, without a queue."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import servers
from helpers import make_photos

from worker.errors import UsageError
from worker.jobs import Job, Model, Options
from worker.names import Namer, check_template, is_image, output_key
from worker.plan import Listing
from worker.settings import load_settings
from worker.uris import Place, resolve

SETTINGS = dataclasses.replace(load_settings({}), chunk_images=7, chunk_megapixels=1000)


def job(source: Path, **options: object) -> Job:
    return Job("j", str(source), f"{source}-x2", Options(**options), Model("v", "0"))


def take_all(job: Job, cursor: str = "") -> list[list[str]]:
    listing = Listing(job, SETTINGS, "cpu", cursor)
    parts = []
    while True:
        part = listing.take()
        parts.append([image.key for image in part.images])
        if part.last:
            return parts


def test_a_listing_is_cut_into_chunks_that_hold_every_image_once(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 30)

    parts = take_all(job(photos))

    keys = [key for part in parts for key in part]
    assert sorted(keys) == keys == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*g"))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 2]


def test_a_listing_goes_on_from_any_cursor_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 30)
    listing = Listing(job(photos), SETTINGS, "cpu", "")
    whole = take_all(job(photos))

    for n in range(4):
        cursor = listing.take().cursor
        assert take_all(job(photos), cursor) == whole[n + 1 :]


def test_chunks_are_bounded_by_what_they_cost(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "p", 4, size=(600, 600))
    small = dataclasses.replace(SETTINGS, chunk_megapixels=1)
    listing = Listing(job(photos, scale=8.0), small, "cpu", "")

    assert [len(listing.take().images) for _ in range(4)] == [1, 1, 1, 1]


def test_an_empty_folder_is_one_empty_last_part(tmp_path: Path) -> None:
    assert take_all(job(tmp_path)) == [[]]


@pytest.mark.parametrize(
    ("key", "requested", "output"),
    [
        ("a/b.jpg", "same", "a/b.jpg"),
        ("a.JPEG", "jpeg", "a.JPEG"),
        ("a.b.tif", "png", "a.b.png"),
        ("x.gif", "same", "x.png"),
    ],
)
def test_outputs_keep_their_name_unless_the_format_changes(key: str, requested: str, output: str) -> None:
    assert output_key(key, Options(format=requested)) == output


@pytest.mark.parametrize(
    ("key", "template", "output"),
    [
        ("a/b.jpg", "{name}-x{scale}.{format}", "a/b-x1.5.png"),
        ("b.JPEG", "{name}.{ext}.{format}", "b.JPEG.png"),
        ("b.PNG", "big_{name}.{format}", "big_b.PNG"),
        ("{0}.tif", "{name}{{}}.{format}", "{0}{}.png"),
    ],
)
def test_a_template_names_outputs_in_their_folder(key: str, template: str, output: str) -> None:
    check_template(template)

    assert output_key(key, Options(format="png", scale=1.5, name_template=template)) == output


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{nmae}.{format}", "did you mean {name}?"),
        ("{name}", "must end in .{format}"),
        ("all.{format}", "must have {name} once"),
        ("{ext}-{name}.{format}", "before {ext} and {format}"),
        ("{name}/{name}.{format}", "must have {name} once"),
        ("../{name}.{format}", "plain file name"),
        (".{name}.{format}", "not hidden"),
        ("{name:>99}.{format}", "has a ':' or '!'"),
        ("{name.__class__}.{format}", "there are {name}, {ext}, {scale}, {format}"),
        ("{name", "does not parse"),
    ],
)
def test_a_template_that_could_do_harm_is_refused(template: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_template(template)

    assert said in str(caught.value)


def test_a_template_with_the_old_suffix_keeps_two_inputs_apart_and_without_it_they_are_found() -> None:
    apart = Namer(Options(format="png", name_template="{name}.{ext}.{format}"))
    together = Namer(Options(format="png", name_template="{name}-x{scale}.{format}"))
    keys = ["a.jpeg", "a.jpg", "a.png", "a.png.png"]

    outputs = [apart.name(key) for key in keys]
    assert [problem for _, problem in outputs] == [None] * 4
    assert len({output for output, _ in outputs}) == 4
    assert [key for key in keys if together.name(key)[1]] == ["a.jpg", "a.png"]


def test_two_inputs_for_one_output_are_found_whatever_lies_between_them() -> None:
    namer = Namer(Options(format="png"))
    keys = ["i.0001.jpg", "i.0001.png", "i.bmp", "i.x.jpg", "i.x.y.jpg", "i.x.y.png", "i.x.z.png", "img.jpg", "j.jpg"]

    assert [key for key in keys if namer.name(key)[1]] == ["i.0001.png", "i.x.y.png"]


def test_a_collision_across_two_parts_is_found_by_the_next_process() -> None:
    first = Namer(Options(format="png"))
    for key in ("k.a.jpg", "k.bmp"):
        assert first.name(key)[1] is None

    second = Namer(Options(format="png"), list(first.stack))

    assert second.name("k.c.png")[1] is None
    assert second.name("k.jpg")[1][0] == "name_collision"
    assert second.name("l.jpg")[1] is None


@pytest.mark.parametrize(
    "key", ["../up.png", "/abs.png", "a//b.png", "a/./b.png", "a/../../b.png", "nul\0.png", "c\\d.png"]
)
def test_a_key_that_would_leave_its_folder_is_that_images_failure(key: str) -> None:
    assert Namer(Options()).name(key)[1][0] == "unsafe_name"


def test_images_are_told_by_their_names() -> None:
    names = ["a.jpg", "b.PNG", "d/e.tiff", "no", ".png", "x.txt", "a.jpg/b"]

    assert [name for name in names if is_image(name)] == ["a.jpg", "b.PNG", "d/e.tiff"]


def test_places_are_resolved_by_the_documented_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    assert resolve("s3://b-1/p/q/", SETTINGS) == Place("s3", "b-1", "p/q")
    assert resolve("bucket/prefix", SETTINGS).uri == "s3://bucket/prefix"
    assert resolve("here", SETTINGS).uri == str(tmp_path / "here")
    assert resolve("./nowhere", SETTINGS).uri == str(tmp_path / "nowhere")
    assert resolve("s3://bucket", SETTINGS).uri == "s3://bucket"


@pytest.mark.parametrize("text", ["", "http://x/y", "No/Bucket", "s3://", "s3://A", "a\0b", "mistyped", "s3://b/x//q"])
def test_what_can_be_no_place_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError):
        resolve(text, SETTINGS)


@pytest.mark.s3
def test_a_name_that_is_a_folder_and_a_bucket_is_an_error(
    bucket: str, s3_server: servers.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / bucket).mkdir()
    settings = dataclasses.replace(SETTINGS, s3_endpoint_url=s3_server.endpoint_url)

    with pytest.raises(UsageError, match=f"write ./{bucket} or s3://{bucket}"):
        resolve(bucket, settings)
    assert resolve(f"./{bucket}", settings).scheme == "file"
