"""How does S3 fail? A proxy before a real server passes every request on, but for those that a rule spoils.

The Host header goes through as the client sent it, for the signature covers it.
"""

from __future__ import annotations

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Callable[["Exchange"], None]
"""Answers a request, or does not."""


@dataclass
class Rule:
    """Which requests are spoilt, and how."""

    operation: str
    """GET, PUT, HEAD, DELETE or LIST; "" for all."""
    key: str
    """A regular expression, searched for in the object's full key."""
    fault: Fault
    skip: int = 0
    """So many matching requests go through first."""
    times: int | None = 1
    """So many are spoilt then; None for all."""
    share: float = 1.0
    """The part of them that is spoilt, drawn at random."""
    seen: int = field(default=0, init=False)
    spoilt: int = field(default=0, init=False)

    def takes(self, operation: str, key: str) -> bool:
        """Whether this request is one of them; counts it."""
        if (self.operation and self.operation != operation) or not re.search(self.key, key):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.spoilt >= self.times):
            return False
        if self.share < 1 and random.random() >= self.share:
            return False
        self.spoilt += 1
        return True


class Proxy(ThreadingHTTPServer):
    """Listens on a port of its own, before one server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_url: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.upstream = urlsplit(upstream_url).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.closing = threading.Event()
        self.counts: Counter[str] = Counter()
        """Requests by operation."""
        self.seen: list[tuple[str, str, str]] = []
        """Every request's operation, bucket and key ("" for a listing)."""
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    @contextmanager
    def spoiling(self, *rules: Rule) -> Iterator[None]:
        """These rules hold within the block; the first that takes a request decides."""
        self._rules = list(rules)
        self.counts.clear()
        try:
            yield
        finally:
            self._rules = []

    def fault_for(self, operation: str, key: str) -> Fault | None:
        """What is to happen to a request; None lets it through."""
        with self._lock:
            self.counts[operation] += 1
            return next((rule.fault for rule in self._rules if rule.takes(operation, key)), None)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news here."""


@contextmanager
def proxy_before(upstream_url: str) -> Iterator[Proxy]:
    """A running proxy."""
    server = Proxy(upstream_url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()


class Exchange(BaseHTTPRequestHandler):
    """One connection; a request at a time."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def handle_request(self) -> None:
        assert "chunked" not in self.headers.get("Transfer-Encoding", ""), "the client should tell the body's length"
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.removeprefix("/").partition("/")
        self.bucket, self.key, self.query = bucket, unquote(key), parse_qs(parts.query)
        operation = "LIST" if "list-type" in self.query else self.command
        self.server.seen.append((operation, bucket, "" if operation == "LIST" else self.key))
        fault = self.server.fault_for(operation, self.key)
        if fault is None:
            self.send(*self.forwarded())
        else:
            fault(self)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request  # noqa: N815

    def forwarded(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the real server's answer."""
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(self.body)
            answer = upstream.getresponse()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
            return answer.status, headers, answer.read()
        finally:
            upstream.close()

    def send(self, status: int, headers: Sequence[tuple[str, str]], body: bytes, *, of: int | None = None) -> None:
        """Answer; `of` promises more bytes than there are, and hangs up after them."""
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "date", "server") or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body) if of is None else of))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        if of is not None:
            self.close_connection = True

    def hang_up(self) -> None:
        """Reset the connection, so that the client sees ECONNRESET and no orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *args: object) -> None:
        """Nothing, on stderr."""


# --- faults ---------------------------------------------------------------------------------------------------------


def refusal(status: int, code: str) -> Fault:
    """The server says no."""

    def answer(exchange: Exchange) -> None:
        exchange.send(status, [("Content-Type", "application/xml")], f"<Error><Code>{code}</Code></Error>".encode())

    return answer


def reset(exchange: Exchange) -> None:
    """The connection breaks before the server has seen the request."""
    exchange.hang_up()


def lost_answer(exchange: Exchange) -> None:
    """The server does what it was asked for; the connection breaks before it can say so."""
    exchange.forwarded()
    exchange.hang_up()


def truncated(exchange: Exchange) -> None:
    """The body breaks off halfway."""
    status, headers, body = exchange.forwarded()
    exchange.send(status, headers, body[: len(body) // 2], of=len(body))


def stalled(seconds: float) -> Fault:
    """Silence, and then the end of the connection."""

    def wait(exchange: Exchange) -> None:
        exchange.server.closing.wait(seconds)
        exchange.hang_up()

    return wait


def delayed(seconds: float) -> Fault:
    """The answer comes late."""

    def wait(exchange: Exchange) -> None:
        time.sleep(seconds)
        exchange.send(*exchange.forwarded())

    return wait


def after(action: Callable[[], object]) -> Fault:
    """Something happens in the world first; then the request goes through."""

    def act(exchange: Exchange) -> None:
        action()
        exchange.send(*exchange.forwarded())

    return act


def holding(data: bytes) -> Fault:
    """There is such an object."""

    def answer(exchange: Exchange) -> None:
        exchange.send(200, [("ETag", '"0"'), ("Content-Type", "image/png")], data)

    return answer


def listing(keys: Sequence[str], size_bytes: int = 100) -> Fault:
    """A page with keys that the real server could not hold, as ListObjectsV2 gives them when asked to URL-encode."""

    def answer(exchange: Exchange) -> None:
        contents = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>{size_bytes}</Size><ETag>&quot;0&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><EncodingType>url</EncodingType>'
            f"<IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{contents}</ListBucketResult>"
        )
        exchange.send(200, [("Content-Type", "application/xml")], body.encode())

    return answer
