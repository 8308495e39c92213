"""What does a disk do that takes "A.png" and "a.png" for one name, as those of most Macs do?

A file system in memory that keeps names as they were first given, and finds them in any case and Unicode form. It
speaks the kernel's FUSE protocol (linux/fuse.h, version 7.31) on /dev/fuse, as far as files and folders need it, so
that programs meet a real mount. `python tests/folding.py FOLDER` serves until it is killed; it takes root and Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

IN, OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<6Q10I")
LARGEST = 1 << 17  # bytes of a write


@dataclass
class Node:
    """A file or a folder."""

    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    children: dict[str, tuple[bytes, Node]] = field(default_factory=dict)
    """Folded name -> the name as it was given, and what it names."""
    links: int = 1
    mtime_ns: int = field(default_factory=time.time_ns)

    def attributes(self) -> bytes:
        seconds, nanoseconds = divmod(self.mtime_ns, 10**9)
        times = (seconds,) * 3, (nanoseconds,) * 3
        size = len(self.data)
        blocks = -(-size // 512)
        return ATTRIBUTES.pack(
            self.number, size, blocks, *times[0], *times[1], self.mode, self.links, os.getuid(), 0, 0, 4096, 0
        )


def fold(name: bytes) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", os.fsdecode(name)).casefold())


class Refused(Exception):
    """The kernel is told this error number."""


class Disk:
    """Answers the kernel's requests, one at a time."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.add(stat.S_IFDIR | 0o755)

    def add(self, mode: int) -> Node:
        node = Node(len(self.nodes) + 1, mode)  # numbers are not used again: nothing is ever forgotten
        self.nodes[node.number] = node
        return node

    def answer(self, operation: int, node: Node, body: bytes) -> bytes:
        handler = HANDLERS.get(operation)
        if handler is None:
            raise Refused(errno.ENOSYS)
        return handler(self, node, body)

    def found(self, folder: Node, name: bytes) -> Node:
        try:
            return folder.children[fold(name)][1]
        except KeyError as exc:
            raise Refused(errno.ENOENT) from exc

    def lookup(self, node: Node, body: bytes) -> bytes:
        return _entry(self.found(node, _name(body)))

    def getattr(self, node: Node, body: bytes) -> bytes:
        return _attributes(node)

    def setattr(self, node: Node, body: bytes) -> bytes:
        (valid,) = struct.unpack_from("<I", body)
        if valid & 1:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(struct.unpack_from("<I", body, 68)[0])
        if valid & 8:
            (size,) = struct.unpack_from("<Q", body, 16)
            node.data[:] = node.data[:size].ljust(size, b"\0")
            node.mtime_ns = time.time_ns()
        return _attributes(node)

    def new(self, folder: Node, name: bytes, mode: int) -> Node:
        if fold(name) in folder.children:
            raise Refused(errno.EEXIST)
        node = self.add(mode)
        folder.children[fold(name)] = (name, node)
        return node

    def mkdir(self, node: Node, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        return _entry(self.new(node, _name(body[8:]), stat.S_IFDIR | mode & ~umask))

    def create(self, node: Node, body: bytes) -> bytes:
        _, mode, umask, _ = struct.unpack_from("<IIII", body)
        return _entry(self.new(node, _name(body[16:]), stat.S_IFREG | mode & ~umask)) + self.open(node, b"")

    def unlink(self, node: Node, body: bytes) -> bytes:
        self.found(node, _name(body)).links -= 1
        del node.children[fold(_name(body))]
        return b""

    def rename(self, node: Node, body: bytes) -> bytes:
        return self.move(node, body, 8)

    def rename2(self, node: Node, body: bytes) -> bytes:
        return self.move(node, body, 16)

    def move(self, node: Node, body: bytes, header: int) -> bytes:
        target = self.nodes[struct.unpack_from("<Q", body)[0]]
        old, new, _ = body[header:].split(b"\0", 2)
        moved = self.found(node, old)
        there = target.children.get(fold(new))
        if there and there[1] is moved and fold(old) != fold(new):
            return b""  # two links to one file: POSIX leaves both
        del node.children[fold(old)]
        # What is replaced keeps its spelling, as on the disks that this one stands for.
        target.children[fold(new)] = (there[0] if there else new, moved)
        return b""

    def link(self, node: Node, body: bytes) -> bytes:
        linked, name = self.nodes[struct.unpack_from("<Q", body)[0]], _name(body[8:])
        if fold(name) in node.children:
            raise Refused(errno.EEXIST)
        node.children[fold(name)] = (name, linked)
        linked.links += 1
        return _entry(linked)

    def open(self, node: Node, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0)

    def read(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(node.data[offset : offset + size])

    def write(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + size] = body[40 : 40 + size]
        node.mtime_ns = time.time_ns()
        return struct.pack("<II", size, 0)

    def readdir(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        listed = b""
        for n, (name, child) in enumerate(list(node.children.values())[offset:], offset + 1):
            kind = stat.S_IFMT(child.mode) >> 12
            one = struct.pack("<QQII", child.number, n, len(name), kind) + name
            one = one.ljust(-(-len(one) // 8) * 8, b"\0")
            if len(listed) + len(one) > size:
                break
            listed += one
        return listed

    def statfs(self, node: Node, body: bytes) -> bytes:
        return struct.pack("<5Q4I6I", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, 0, *([0] * 6))

    def nothing(self, node: Node, body: bytes) -> bytes:
        return b""


HANDLERS: dict[int, Callable[[Disk, Node, bytes], bytes]] = {
    1: Disk.lookup,
    3: Disk.getattr,
    4: Disk.setattr,
    9: Disk.mkdir,
    10: Disk.unlink,
    11: Disk.unlink,
    12: Disk.rename,
    13: Disk.link,
    14: Disk.open,
    15: Disk.read,
    16: Disk.write,
    17: Disk.statfs,
    18: Disk.nothing,
    20: Disk.nothing,
    25: Disk.nothing,
    27: Disk.open,
    28: Disk.readdir,
    29: Disk.nothing,
    30: Disk.nothing,
    35: Disk.create,
    45: Disk.rename2,
}
INIT, UNANSWERED = 26, (2, 36, 42)  # forget, interrupt, batch_forget


def _name(body: bytes) -> bytes:
    return body.partition(b"\0")[0]


def _entry(node: Node) -> bytes:
    return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + node.attributes()  # valid for no time: asked each time


def _attributes(node: Node) -> bytes:
    return struct.pack("<Q2I", 0, 0, 0) + node.attributes()


def serve(folder: str) -> None:
    """Mount on a folder, and answer until killed."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"folding", os.fsencode(folder), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    disk = Disk()
    while True:
        try:
            request = os.read(device, LARGEST + 4096)
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # unmounted
                return
            continue
        _, operation, unique, number, *_ = IN.unpack_from(request)
        body = request[IN.size :]
        if operation in UNANSWERED:
            continue
        error, reply = 0, b""
        if operation == INIT:
            reply = struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 16, 12, LARGEST, 1, 0, 0, 0, *([0] * 7))
        else:
            try:
                reply = disk.answer(operation, disk.nodes[number], body)
            except Refused as exc:
                error = -exc.args[0]
        os.write(device, OUT.pack(OUT.size + len(reply), error, unique) + reply)


if __name__ == "__main__":
    serve(sys.argv[1])
