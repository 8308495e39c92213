"""Does any file crash, hang or bloat a worker? Damages small pictures of every format, and decodes and writes them.

    python tests/faults/fuzz.py --count 10000 --seed 0

Every case is a number: the same one of the same seed is the same bytes on every machine (the pictures to begin with lie
in `seeds/`, made once by Pillow and by hand). Cases run in processes of their own, with a limit of time and memory, so
that even a segfault is attributed; what was found lies in `--keep`, one file a case, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEEDS = Path(__file__).with_name("seeds")
ROOT = Path(__file__).parents[2]
MAX_PIXELS = 1_000_000
TIME_LIMIT_S = 20
"""For a file of some kilobytes, on a busy machine."""
MEMORY_LIMIT_BYTES = 512 << 20
"""Above what the process has before the first case. A picture of MAX_PIXELS takes 4 MB."""
START_LIMIT_S = 120
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@dataclass(frozen=True)
class Finding:
    """A case that gave neither a picture nor an ImageError within its limits."""

    case: int
    name: str
    """Of the picture that was damaged."""
    what: str


@dataclass
class Report:
    """What a run has seen."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(format, outcome) -> cases."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Format -> time of its cases."""
    slowest: tuple[float, int] = (0.0, -1)
    """Seconds, case."""
    findings: list[Finding] = field(default_factory=list)


# ---- cases ----------------------------------------------------------------------------------------------------------


def case_of(seed: int, number: int) -> tuple[str, bytes]:
    """A case: the name of its picture, and the damaged bytes."""
    names = sorted(path.name for path in SEEDS.iterdir())
    name = names[number % len(names)]
    chance = random.Random(f"{seed}/{number}")
    data = bytearray((SEEDS / name).read_bytes())
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5, 10, 40))):
        damage = chance.choice(DAMAGES)
        data = damage(data, chance) if data else data
    if name.endswith(".png") and chance.random() < 0.8:
        data = _with_checksums(data)  # else all but a few would end at the first wrong one
    return name, bytes(data)


def _flip(data: bytearray, chance: random.Random) -> bytearray:
    data[_place(data, chance)] ^= 1 << chance.randrange(8)
    return data


def _set_byte(data: bytearray, chance: random.Random) -> bytearray:
    data[_place(data, chance)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return data


def _set_number(data: bytearray, chance: random.Random) -> bytearray:
    """Sizes, counts and offsets live in two and four bytes, of either order."""
    code = chance.choice(("<H", ">H", "<L", ">L"))
    size = struct.calcsize(code)
    if len(data) >= size:
        place = min(_place(data, chance), len(data) - size)
        near = struct.unpack_from(code, data, place)[0] + chance.randint(-3, 3)
        value = chance.choice((*EXTREMES, near, len(data)))
        struct.pack_into(code, data, place, value % 256**size)
    return data


def _cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: _place(data, chance)]


def _remove(data: bytearray, chance: random.Random) -> bytearray:
    start = _place(data, chance)
    return data[:start] + data[start + chance.randint(1, 40) :]


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    start = _place(data, chance)
    piece = data[start : start + chance.randint(1, 100)]
    return data[:start] + piece * chance.choice((1, 2, 50)) + data[start:]


def _insert(data: bytearray, chance: random.Random) -> bytearray:
    start = _place(data, chance)
    return data[:start] + chance.randbytes(chance.randint(1, 20)) + data[start:]


def _splice(data: bytearray, chance: random.Random) -> bytearray:
    """The beginning of this picture and the end of another."""
    other = chance.choice(sorted(SEEDS.iterdir())).read_bytes()
    return data[: _place(data, chance)] + other[chance.randrange(len(other)) :]


DAMAGES: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    *(_flip, _flip, _set_byte, _set_byte, _set_number, _set_number, _set_number),
    *(_cut, _remove, _repeat, _insert, _splice),
)


def _place(data: bytearray, chance: random.Random) -> int:
    """Anywhere, and half of the time in the first 64 bytes, where headers are."""
    return chance.randrange(min(len(data), chance.choice((64, len(data)))))


def _with_checksums(data: bytearray) -> bytearray:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">L", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


# ---- in the child ---------------------------------------------------------------------------------------------------


def examine(data: bytes) -> str:
    """Decode a file and write what is in it; "picture", or the code of its ImageError."""
    from PIL import Image

    from vdsr.errors import ImageError
    from worker.images import decode, encode

    try:
        picture = decode(data, max_pixels=MAX_PIXELS)
    except ImageError as exc:
        return exc.code
    if str(picture.pixels.dtype) not in ("uint8", "uint16"):
        raise TypeError(f"pixels are {picture.pixels.dtype}")
    for image_format in ("PNG", "TIFF"):
        written = encode(picture.pixels, image_format, picture.extras, quality=None)
        again = Image.open(io.BytesIO(written)).size
        if again != picture.pixels.shape[1::-1]:
            raise ValueError(f"the {image_format} has {again} pixels, not {picture.pixels.shape}")
    return "picture"


def child(seed: int, target: str) -> None:
    """Take numbers of cases from standard input; for each a line of its outcome as JSON."""
    warnings.simplefilter("ignore")  # Pillow warns of what it finds odd
    module, _, function = target.partition(":")
    try_case = examine if not module else getattr(importlib.import_module(module), function)
    for path in sorted(SEEDS.iterdir()):  # what is imported late is no case's fault
        examine(path.read_bytes())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        _, data = case_of(seed, int(line))
        began = time.monotonic()
        try:
            outcome = {"outcome": try_case(data)}
        except Exception as exc:  # whatever it is, it is the finding
            outcome = {"finding": f"{type(exc).__name__}: {exc}"}
        print(json.dumps({**outcome, "seconds": time.monotonic() - began}), flush=True)


# ---- in the parent --------------------------------------------------------------------------------------------------


def fuzz(
    count: int,
    seed: int,
    *,
    first: int = 0,
    target: str = "",
    time_limit_s: float = TIME_LIMIT_S,
    on_case: Callable[[int], None] = lambda number: None,
) -> Report:
    """Run cases `first` to `first + count`.

    Args:
        target: "module:function" to try instead of `examine`.
    """
    report = Report()
    numbers = iter(range(first, first + count))
    number = next(numbers, None)
    while number is not None:  # one round a process
        with _process(seed, target) as process:
            while number is not None:
                name, _ = case_of(seed, number)
                answer = _ask(process, number, time_limit_s)
                _record(report, number, name, answer)
                on_case(number)
                number = next(numbers, None)
                if "died" in answer:
                    break
    return report


class _process:  # noqa: N801 - used as a function
    """A child that is ready, killed at the end of the block."""

    def __init__(self, seed: int, target: str) -> None:
        command = [sys.executable, __file__, "--child", "--seed", str(seed), "--target", target]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=ROOT
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        if _line(self.process, START_LIMIT_S) != json.dumps("ready"):
            self.process.kill()
            self.errors.seek(0)
            raise RuntimeError(f"the child did not start: {self.errors.read().decode()}")
        return self.process

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _ask(process: subprocess.Popen[bytes], number: int, time_limit_s: float) -> dict[str, object]:
    """The child's answer to a case; "died" among its keys if it has none and there will be no more."""
    assert process.stdin is not None
    process.stdin.write(f"{number}\n".encode())
    process.stdin.flush()
    line = _line(process, time_limit_s)
    if line is None:
        return {"finding": f"no result in {time_limit_s:g} s", "seconds": time_limit_s, "died": True}
    if line:
        answer: dict[str, object] = json.loads(line)
        return answer
    code = process.wait()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return {"finding": f"the process died: {how}", "seconds": 0.0, "died": True}


def _line(process: subprocess.Popen[bytes], limit_s: float) -> str | None:
    """The next line, "" at the end, None if there is none in time."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], limit_s)[0]:
        return None
    return process.stdout.readline().decode().rstrip("\n")


def _record(report: Report, number: int, name: str, answer: dict[str, object]) -> None:
    image_format, seconds = name.rpartition(".")[2], float(str(answer["seconds"]))
    outcome = str(answer.get("outcome", "FINDING"))
    report.outcomes[image_format, outcome] += 1
    report.seconds[image_format] += seconds  # type: ignore[assignment]  # a Counter adds floats as well
    report.slowest = max(report.slowest, (seconds, number))
    if "finding" in answer:
        report.findings.append(Finding(number, name, str(answer["finding"])))


def summary(report: Report) -> Iterator[str]:
    """Lines for people: a table by format, then what was found."""
    formats = sorted({image_format for image_format, _ in report.outcomes})
    outcomes = sorted({outcome for _, outcome in report.outcomes})
    yield "".join(f"{word:>13}" for word in ("format", *outcomes, "seconds"))
    for image_format in formats:
        counts = [str(report.outcomes[image_format, outcome]) for outcome in outcomes]
        yield "".join(f"{word:>13}" for word in (image_format, *counts, f"{report.seconds[image_format]:.1f}"))
    yield f"slowest: case {report.slowest[1]}, {report.slowest[0]:.3f} s"
    yield from (f"FOUND case {found.case} ({found.name}): {found.what}" for found in report.findings)


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for what was found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--target", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.path.insert(0, str(ROOT))
        child(options.seed, options.target)
        return 0
    began = time.monotonic()

    def told(number: int) -> None:
        if (number + 1) % 1000 == 0:
            print(f"{number + 1 - options.first:,} cases, {time.monotonic() - began:.0f} s", file=sys.stderr)

    report = fuzz(options.count, options.seed, first=options.first, target=options.target, on_case=told)
    print("\n".join(summary(report)))
    for found in report.findings:
        options.keep.mkdir(parents=True, exist_ok=True)
        (options.keep / f"{options.seed}-{found.case}-{found.name}").write_bytes(case_of(options.seed, found.case)[1])
    print(f"{options.count:,} cases in {time.monotonic() - began:.0f} s, {len(report.findings)} findings")
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
