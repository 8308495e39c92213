"""How are the objects of an S3 bucket read and written, and whose fault is it when that fails?

botocore's errors end here. It repeats a request by itself up to six times; what is repeated beyond that says why.
Credentials come from where boto3 finds them (environment, profile, instance role) and appear in no message.
"""

from __future__ import annotations

import mimetypes
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.utils import parse_timestamp
from urllib3.exceptions import HTTPError as Urllib3Error

from vdsr.errors import FileTooLarge, VdsrError
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
from worker.storage import Entry, check_key, is_hidden

PAGE_SIZE = 1000
"""Keys a listing asks for at once; S3 gives no more."""

MAX_KEY_BYTES = 1024
MAX_PUT_BYTES = 5 * 2**30
"""More takes a multipart upload, which no image needs."""

BODY_ATTEMPTS = 3
"""botocore repeats a request that gets no answer, but not an answer that breaks off in its body."""

EXPECT_FROM_BYTES = 2 * 2**20
"""Larger uploads first ask whether they are welcome, as those of other AWS SDKs do."""

CONFLICT_PAUSES_S = (0.1, 0.3, 1.0, 3.0)


class S3Storage:
    """The objects below one folder of a bucket; "my/path" holds "my/path/a.png" and not "my/path2/a.png".

    Listings come in the server's order and are taken up again in it. On S3 that is byte order; SeaweedFS puts
    "a/b.png" before "a-b.png", as if "/" were the smallest character.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        prefix = prefix.strip("/")
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._folder = check_key(prefix) + "/" if prefix else ""
        self._endpoint_url = _check_endpoint(endpoint_url)
        self._region = region

    def entries(self, *, after: str = "", recursive: bool = True, with_denied: bool = False) -> Iterator[Entry]:
        """Objects with keys greater than `after`; markers that stand for folders ("a/", 0 bytes) are left out.

        Args:
            with_denied: changes nothing, since S3 has no folders that could deny.
        """
        # EncodingType is left to botocore: it then asks for URL-encoded keys, which XML could not all hold as they
        # are (control characters), and decodes them. If asked for here, the keys would come undecoded.
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._folder, "MaxKeys": PAGE_SIZE}
        if after:
            request["StartAfter"] = self._folder + _check_encodable(after)
        if not recursive:
            request["Delimiter"] = "/"
        while True:
            with self._naming_errors(""):
                page = self._ask("list_objects_v2", **request)
            for found in page.get("Contents", ()):
                key, size_bytes = found["Key"].removeprefix(self._folder), found["Size"]
                is_marker = not key or (key.endswith("/") and size_bytes == 0)
                if not is_marker and not is_hidden(key):
                    yield Entry(key, size_bytes, _version(found["ETag"]))
            if not page["IsTruncated"]:
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def read(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """The whole object, its length verified; FileTooLarge where it has more than `max_bytes`."""
        return self._read(key, max_bytes)[0]

    def read_version(self, key: str, *, max_bytes: int | None = None) -> tuple[bytes, str]:
        """The whole object and its version: what one GET answers is never a mix."""
        data, tag = self._read(key, max_bytes)
        return data, _version(tag)

    def entry(self, key: str) -> Entry:
        """One object as a listing would give it."""
        name = self._name(key)
        with self._naming_errors(key):
            found = self._ask("head_object", Bucket=self._bucket, Key=name)
        return Entry(key, found["ContentLength"], _version(found["ETag"]))

    def exists(self, key: str) -> bool:
        """Whether there is such an object; False, too, where there is no such bucket (HEAD does not tell)."""
        return self.mark(key) is not None

    def mark(self, key: str) -> str | None:
        """The mark of an object, from its metadata."""
        name = self._name(key)
        with self._naming_errors(key):
            try:
                metadata: dict[str, str] = self._ask("head_object", Bucket=self._bucket, Key=name)["Metadata"]
            except ClientError as exc:
                if _status(exc) == 404:
                    return None
                raise
        return metadata.get(_MARK, "")

    def write(self, key: str, data: bytes, *, mark: str = "") -> None:
        """Replace the object in one request, and so whole."""
        request = self._put_request(key, data)
        if mark:
            request["Metadata"] = {_MARK: mark}
        with self._naming_errors(key):
            self._ask("put_object", **request)

    def folds_names(self) -> bool:
        """Never: keys are bytes to S3."""
        return False

    def create(self, key: str, data: bytes) -> bool:
        """Write the object only if there is none; of two at the same time, exactly one is told True."""
        return self._put_if(key, data, {"IfNoneMatch": "*"})

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        """The whole object, and its ETag."""
        return self._read(key, None)

    def swap(self, key: str, data: bytes, tag: str) -> bool:
        """Replace the object only if it is still what `tag` was given for; of two at once, one is told True."""
        return self._put_if(key, data, {"IfMatch": tag})

    def _put_if(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        """Whether the object was written: not, if the condition does not hold.

        If the answer to a successful request is lost, botocore's repetition finds the condition broken by itself: the
        writer named in the object's metadata tells that it is our own (seen: a race that nobody won).
        """
        writer = secrets.token_hex(16)
        request = self._put_request(key, data) | condition | {"Metadata": {_WRITER: writer}}
        with self._naming_errors(key):
            for pause_s in CONFLICT_PAUSES_S:
                try:
                    self._ask("put_object", **request)
                except ClientError as exc:
                    if _status(exc) == 412:
                        return _was_repeated(exc) and self._writer(request["Key"]) == writer
                    if _status(exc) == 404 and "IfMatch" in condition:
                        return False  # deleted meanwhile
                    if _code(exc) != "ConditionalRequestConflict":
                        raise
                    time.sleep(pause_s)  # S3 asks to repeat: another request on this key was under way
                else:
                    return True
        raise StorageUnavailable(f"{self._place(key)}: others kept writing it at the same time; retry")

    @property
    def _client(self) -> Any:
        return clients.get(self._endpoint_url, self._region)

    def _ask(self, operation: str, **request: Any) -> Any:
        """The server's answer; asked once more if the credentials had run out, with those that boto3 finds then."""
        try:
            return getattr(self._client, operation)(**request)
        except ClientError as exc:
            if _code(exc) not in _STALE_CREDENTIALS:
                raise
            clients.forget()
            return getattr(self._client, operation)(**request)

    def _name(self, key: str) -> str:
        """The key's full name in the bucket."""
        name = self._folder + _check_encodable(check_key(key))
        size_bytes = len(name.encode())
        if size_bytes > MAX_KEY_BYTES:
            raise UnsafeKey(f"{name!r} has {size_bytes:,} bytes, over S3's limit of {MAX_KEY_BYTES:,}; shorten it")
        return name

    def _read(self, key: str, max_bytes: int | None) -> tuple[bytes, str]:
        name = self._name(key)
        with self._naming_errors(key):
            for _ in range(BODY_ATTEMPTS - 1):
                with suppress(*_BROKEN_BODY):
                    return self._fetch(name, max_bytes)
            return self._fetch(name, max_bytes)

    def _fetch(self, name: str, max_bytes: int | None) -> tuple[bytes, str]:
        answer = self._ask("get_object", Bucket=self._bucket, Key=name)
        with closing(answer["Body"]) as body:
            if max_bytes is not None and answer["ContentLength"] > max_bytes:  # what of it was sent is thrown away
                raise FileTooLarge(answer["ContentLength"], max_bytes)
            data: bytes = body.read()
        if len(data) != answer["ContentLength"]:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=answer["ContentLength"])
        return data, answer["ETag"]

    def _put_request(self, key: str, data: bytes) -> dict[str, Any]:
        name = self._name(key)
        if len(data) > MAX_PUT_BYTES:
            raise StorageError(
                f"{self._place(key)} would have {len(data):,} bytes, over the limit of {MAX_PUT_BYTES:,} "
                "for one request to S3; use a smaller scale or a format that compresses more"
            )
        return {"Bucket": self._bucket, "Key": name, "Body": data, "ContentType": _content_type(key)}

    def _writer(self, name: str) -> str | None:
        """Which `create` wrote the object, if one did."""
        metadata: dict[str, str] = self._ask("head_object", Bucket=self._bucket, Key=name)["Metadata"]
        return metadata.get(_WRITER)

    @contextmanager
    def _naming_errors(self, key: str) -> Iterator[None]:
        """Turn botocore's errors into ours, with the object, the reason and what to do."""
        place = self._place(key)
        try:
            yield
        except ClientError as exc:
            raise self._refusal(place, exc) from exc
        except _NO_CREDENTIALS as exc:
            raise BadCredentials(f"{place}: no usable credentials ({type(exc).__name__}); {_SET_CREDENTIALS}") from exc
        except (*_BROKEN_BODY, NoConnectionError, HTTPClientError) as exc:
            raise StorageUnavailable(
                f"{place}: no whole answer from {self._server} ({type(exc).__name__}); "
                "check that it runs and can be reached from here, then retry"
            ) from exc
        except BotoCoreError as exc:
            raise StorageError(f"{place}: {exc}; check the bucket's name and the AWS settings") from exc

    def _refusal(self, place: str, exc: ClientError) -> VdsrError:
        """What the server's answer means."""
        code, status = _code(exc), _status(exc)
        error, remedy = _BY_CODE.get(code) or _BY_STATUS.get(status) or (_BUSY if status >= 500 else _UNEXPECTED)
        message = exc.response.get("Error", {}).get("Message", "") if error is StorageError else ""
        return error(f"{place}: {self._server} answers {' '.join(filter(None, (code, message)))}; {remedy}")

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._folder}{key}".encode(errors="backslashreplace").decode()

    @property
    def _server(self) -> str:
        return self._endpoint_url or "Amazon S3"


class _Clients:
    """This process's clients, one for each server; threads may share them, processes may not."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Make new ones from now on, with the credentials of now."""
        self._made: dict[tuple[str | None, str | None], Any] = {}
        self._lock = threading.Lock()  # a new one, too: a fork may have copied the old one while it was held

    def get(self, endpoint_url: str | None, region: str | None) -> Any:
        """The client of this server, made when it is first needed, for that takes botocore a third of a second."""
        server = (endpoint_url, region)
        with self._lock:
            if server not in self._made:
                self._made[server] = _new_client(endpoint_url, region)
            return self._made[server]


clients = _Clients()
os.register_at_fork(after_in_child=clients.forget)


def _new_client(endpoint_url: str | None, region: str | None) -> Any:
    config = Config(
        retries={"mode": "standard", "max_attempts": 6},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=16,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if endpoint_url else "auto"},  # other servers seldom have a host name a bucket
    )
    core = botocore.session.Session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
    session = boto3.session.Session(botocore_session=core)  # the default one is not safe to share between threads
    client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    client.meta.events.register("before-send.s3.PutObject", _skip_asking)
    return client


def _moment(text: Any) -> datetime:
    """As botocore reads times, but without guessing at their form first: that took two thirds of a listing's time."""
    if isinstance(text, str) and "T" in text:  # digits alone are seconds to botocore, and a day to Python
        with suppress(ValueError):
            return datetime.fromisoformat(text)
    found: datetime = parse_timestamp(text)
    return found


def _skip_asking(request: Any, **_: object) -> None:
    """Send a small body without waiting for the "100 Continue" that botocore always asks for.

    It is a round trip for nothing, and a second where a server is slow to say it; before botocore 1.43.77, an empty
    body left the connection so that the next request on it took 60 s (https://github.com/boto/botocore/issues/3755).
    """
    if int(request.headers.get("Content-Length", 0)) < EXPECT_FROM_BYTES:
        request.headers.pop("Expect", None)


def _check_endpoint(endpoint_url: str | None) -> str | None:
    if endpoint_url is None:
        return None
    parts = urlsplit(endpoint_url)
    if parts.username is not None or parts.password is not None:
        raise UsageError("the S3 endpoint holds a user or password, which would show in messages; " + _SET_CREDENTIALS)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"the S3 endpoint {endpoint_url!r} is no URL; write it as https://host:port")
    return endpoint_url


def _check_encodable(key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError as exc:
        raise UnsafeKey(f"{key!r} is not valid Unicode, and S3 names are; rename it") from exc
    return key


def _content_type(key: str) -> str:
    extension = os.path.splitext(key)[1]
    if extension == ".jsonl":
        return "application/x-ndjson"  # unknown to mimetypes
    guessed, encoding = mimetypes.guess_type("name" + extension, strict=False)
    return guessed if guessed and not encoding else "application/octet-stream"


def _version(etag: str) -> str:
    return etag.strip('"')


def _code(exc: ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _status(exc: ClientError) -> int:
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _was_repeated(exc: ClientError) -> bool:
    return int(exc.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0


_WRITER = "vdsr-writer"
_MARK = "vdsr-mark"
_SET_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to credentials that may list, read and write it"
)
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    ProfileNotFound,
    TokenRetrievalError,
)
_BROKEN_BODY = (
    IncompleteReadError,
    ResponseStreamingError,
    ChecksumError,
    FlexibleChecksumError,
    Urllib3Error,  # botocore lets some through, such as a TLS failure within a body
)

_STALE_CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
"""Not SignatureDoesNotMatch, as some servers answer for a name that they encode in another way."""

_DENIED = (AccessDenied, _SET_CREDENTIALS)
_REFUSED = (BadCredentials, _SET_CREDENTIALS)
_GONE = (ObjectNotFound, "it may have been moved or deleted")
_FULL = (StorageFull, "free some space or raise the quota, then retry")
_BUSY = (StorageUnavailable, "it is overloaded or failing; retry later")
_UNEXPECTED = (StorageError, "check endpoint, region and bucket")

_BY_CODE: dict[str, tuple[type[VdsrError], str]] = {
    "NoSuchBucket": (PlaceGone, "check the bucket's name, or create it"),
    "KeyTooLongError": (UnsafeKey, "give it a shorter name"),
    "InvalidObjectState": (StorageError, "it is archived; restore it first"),
    "RequestTimeTooSkewed": (AccessDenied, "set this machine's clock"),
    "RequestTimeout": _BUSY,
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "ExpiredToken": _REFUSED,
    "InvalidToken": _REFUSED,
    "TokenRefreshRequired": _REFUSED,
    "InvalidAccessKeyId": _REFUSED,
    "400": _DENIED,  # all that an answer to HEAD says of an expired token
}
_BY_STATUS: dict[int, tuple[type[VdsrError], str]] = {
    401: _DENIED,
    403: _DENIED,
    404: _GONE,
    409: _BUSY,
    429: _BUSY,
    507: _FULL,
}
