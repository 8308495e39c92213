"""Does S3 keep the promises that only it can make, whatever its server does?"""

from __future__ import annotations

import multiprocessing
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.utils import parse_timestamp
from servers import S3Server

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
from worker.storage.s3 import S3Storage


def keys(storage: Storage, *, after: str = "", recursive: bool = True) -> list[str]:
    return [entry.key for entry in storage.entries(after=after, recursive=recursive)]


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
