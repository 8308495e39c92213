"""How is a job of a million objects measured, where uploading a million takes hours? A server that has them by name.

python benchmarks/bucket.py --port 9000       # s3://any/COUNT/ then has COUNT objects, as s3://any/1000000/

It speaks as much of S3 as vdsr asks for, over HTTP: ListObjectsV2 with pages and StartAfter; GET, HEAD, PUT with
If-None-Match. Objects below a number are all the same small PNG and exist by arithmetic; what is written is kept in
memory. Signatures are not checked. GET /-/counts says how often each operation was asked for,
/-/outputs which pictures were put.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

FOLDER = 10_000
"""Objects a folder of the listing."""
NAME = "{folder:05d}/picture-{number:08d}.png"
FOUND = re.compile(r"(\d+)/(\d{5})/picture-(\d{8})\.png")


class Bucket:
    """Every bucket: what was put, and the pictures that are there by arithmetic."""

    def __init__(self, picture: bytes) -> None:
        self.picture, self.tag = picture, hashlib.md5(picture).hexdigest()
        self.stored: dict[str, tuple[bytes, str, dict[str, str]]] = {}
        """Key -> bytes, ETag, metadata."""
        self.counts: Counter[str] = Counter()
        self._sorted: list[str] = []

    def get(self, key: str) -> tuple[bytes, str, dict[str, str]] | None:
        """Bytes, ETag and metadata of an object."""
        found = FOUND.fullmatch(key)
        if found and int(found[3]) < int(found[1]) and int(found[2]) == int(found[3]) // FOLDER:
            return self.picture, self.tag, {}
        return self.stored.get(key)

    def put(self, key: str, data: bytes, metadata: dict[str, str], *, absent: bool) -> str | None:
        """Its ETag; None if it should have been absent and was not."""
        if absent and key in self.stored:
            return None
        tag = hashlib.md5(data).hexdigest()
        self.stored[key] = (data, tag, metadata)
        return tag

    def page(self, prefix: str, after: str, most: int) -> list[tuple[str, int, str]]:
        """Up to `most` objects behind a key."""
        root = re.fullmatch(r"(\d+)/", prefix)
        if root:
            total = int(root[1])
            found = FOUND.fullmatch(after)
            first = 0 if not after else int(found[3]) + 1 if found else total
            return [
                (f"{total}/{NAME.format(folder=n // FOLDER, number=n)}", len(self.picture), self.tag)
                for n in range(first, min(total, first + most))
            ]
        if len(self._sorted) != len(self.stored):
            self._sorted = sorted(self.stored)
        at = bisect_right(self._sorted, after) if after >= prefix else bisect_left(self._sorted, prefix)
        keys = self._sorted[at : at + most]
        return [(key, len(self.stored[key][0]), self.stored[key][1]) for key in keys if key.startswith(prefix)]


def answer(bucket: Bucket, method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    """What a request gets."""
    parts = urlsplit(target)
    _, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if parts.path == "/-/counts":
        return reply(200, json.dumps({**bucket.counts, "objects": len(bucket.stored)}).encode())
    if parts.path == "/-/outputs":
        return reply(200, json.dumps([key for key in bucket.stored if "/.vdsr/" not in key]).encode())
    if method == "GET" and "list-type" in query:
        bucket.counts["LIST"] += 1
        return reply(200, listing(bucket, query), {"Content-Type": "application/xml"})
    bucket.counts[method] += 1
    if method == "PUT":
        bucket.counts["outputs_put"] += "/.vdsr/" not in key
        metadata = {name: text for name, text in headers.items() if name.startswith("x-amz-meta-")}
        tag = bucket.put(key, body, metadata, absent=headers.get("if-none-match") == "*")
        return reply(200, b"", {"ETag": f'"{tag}"'}) if tag else refusal(412, "PreconditionFailed")
    found = bucket.get(key)
    if found is None:
        return refusal(404, "NoSuchKey", head=method == "HEAD")
    data, tag, metadata = found
    return reply(200, data, {"ETag": f'"{tag}"', **metadata}, head=method == "HEAD")


def listing(bucket: Bucket, query: dict[str, str]) -> bytes:
    """A page of ListObjectsV2, without folders: nothing here asks for more than the keys of one."""
    prefix, most = query.get("prefix", ""), int(query.get("max-keys", "1000"))
    after = query.get("continuation-token") or query.get("start-after", "")
    found = bucket.page(prefix, after, most + 1)
    more, found = len(found) > most, found[:most]
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{tag}&quot;</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key, size, tag in found
    )
    token = f"<NextContinuationToken>{found[-1][0]}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bucket</Name>'
        f"<Prefix>{prefix}</Prefix><KeyCount>{len(found)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
    ).encode()


def refusal(status: int, code: str, *, head: bool = False) -> bytes:
    """S3's way to say no."""
    return reply(status, b"" if head else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


def reply(status: int, body: bytes, headers: dict[str, str] | None = None, *, head: bool = False) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status} .", f"Content-Length: {len(body)}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {text}" for name, text in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)


async def serve(bucket: Bucket, port: int) -> None:
    """Until it is killed."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                pairs = (line.partition(":") for line in lines if line)
                headers = {name.lower(): text.strip() for name, _, text in pairs}
                if "100-continue" in headers.get("expect", ""):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                writer.write(answer(bucket, method, target, headers, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "0.0.0.0", port, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def small_picture(side: int = 16) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, and prints it")
    asyncio.run(serve(Bucket(small_picture()), parser.parse_args().port))
