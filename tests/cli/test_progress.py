"""What people and scripts see of a job that runs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
from helpers import VDSR, make_photos, vdsr

from cli.progress import Progress, live_line
from worker.embedded import LocalRedis
from worker.jobs import Job, Model, Options, State
from worker.ledger import Record
from worker.redis_client import RedisClient
from worker.summary import summarise

JOB = Job("j", "/in", "/out", Options(), Model("v", "0" * 64))


def record(now: float = 100.0, **counters: float) -> Record:
    """A job that has run since 0."""
    return Record(
        job=JOB,
        state=State.RUNNING,
        error=None,
        listed=True,
        planned=1,
        chunks_done=0,
        cursor="",
        counters=counters,
        created=0.0,
        finished=None,
        seconds=now,
        now=now,
    )


MILLIONS: dict[str, Any] = summarise(
    record(
        images=5_000_000,
        done=1_000_000,
        failed=12,
        skipped=3,
        bytes=5e12,
        done_bytes=1e12,
        made_bytes=1e12,
        pixels=1e12,
        psnr_n=2,
        psnr_bicubic_sum=60,
        psnr_vdsr_sum=61.5,
    )
)


def test_the_line_says_images_failures_time_speed_and_gain() -> None:
    assert live_line(MILLIONS, 200) == (
        "[######------------------------] 1,000,015 of 5,000,000 images, 12 failed, 6 min 40 s left, "
        "10000.00 MP/s, +0.75 dB over bicubic, 3 skipped"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_the_line_fits_the_terminal(width: int) -> None:
    line = live_line(MILLIONS, width)

    assert len(line) <= width
    assert "1,000,015 of 5,000,000 images" in line


def test_skipped_images_do_not_shorten_the_time_that_is_left() -> None:
    # 90 of 100 were skipped at once, 1 was made in 100 s: 9 are left, of 100 s each.
    summary = summarise(record(images=100, skipped=90, done=1, bytes=1000, done_bytes=910, made_bytes=10, pixels=1e6))

    assert (summary["megapixels_left"], summary["eta_s"]) == (9.0, 900.0)


def test_speed_and_time_left_are_those_of_the_last_minute() -> None:
    progress = Progress(lambda line: None)
    counters = {"images": 10, "done": 5, "bytes": 100}

    for now, megapixels in ((1000.0, 10), (1030.0, 10), (1060.0, 70)):
        made = {"done_bytes": megapixels, "made_bytes": megapixels, "pixels": megapixels * 1e6}
        told = progress.paced(summarise(record(now, **counters, **made)), now)

    assert told["megapixels_per_second"] == 1.0  # of the whole job: 0.07
    assert told["eta_s"] == 30.0


@pytest.mark.redis
def test_a_terminal_gets_a_bar_and_a_pipe_gets_none(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 6, size=(100, 80))
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))

    command = subprocess.Popen(
        [VDSR, "upscale", tmp_path / "in"],
        env={**state, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    drawn = read_all(terminal)
    assert command.wait(10) == 0
    piped = vdsr(state, "upscale", tmp_path / "in", "--events")

    assert "of 6 images" in drawn
    assert "[####" in drawn
    assert "MP/s" in drawn
    assert "dB over bicubic" in drawn
    assert len(piped.stderr.splitlines()) == 1  # source -> destination
    events = [json.loads(line) for line in piped.stdout.splitlines()]
    assert events[-1]["event"] == "ended"
    assert events[0]["event"] == "progress"
    assert events[-1]["images"]["skipped"] == 6
    assert events[-1]["exit_code"] == 0


def read_all(terminal: int) -> str:
    """What is drawn until nobody has the other end open."""
    drawn = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux' way of saying that the end is closed
            piece = b""
        if not piece:
            os.close(terminal)
            return drawn.decode(errors="replace")
        drawn += piece


@pytest.mark.redis
def test_a_job_without_workers_says_for_how_long_and_its_events_tell_the_end(
    state: dict[str, str], tmp_path: Path
) -> None:
    make_photos(tmp_path / "in", 3)
    with LocalRedis(Path(state["VDSR_STATE_DIR"])) as redis:
        job = vdsr(state, "submit", tmp_path / "in").stdout.strip()
        never = vdsr(state, "status", job)
        client = RedisClient(redis.url)
        client.do("zadd", "vdsr:workers:upscale", {"gone@host": client.now() - 200})
        waited = vdsr(state, "wait", job, "--timeout", "1")
        vdsr(state, "cancel", job)
        ended = vdsr(state, "wait", job, "--events")

    assert "the job is queued and no worker seen; start 'vdsr worker'" in never.stdout
    assert waited.returncode == 124
    assert "the job is queued and no worker seen for 3 min" in waited.stderr
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert events[-1]["event"] == "ended"
    assert (ended.returncode, events[-1]["exit_code"], events[-1]["state"]) == (4, 4, "cancelled")
