"""What a worker leaves for its probes to read, and what they make of it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from helpers import vdsr

from worker.health import Health, Unhealthy


def test_word_that_is_old_or_missing_is_none_and_says_what_to_look_at(tmp_path: Path) -> None:
    health = Health(tmp_path / "health")
    health.begin(["upscale"])
    with pytest.raises(Unhealthy, match="has another VDSR_HEALTH_DIR"):
        health.check_live(300)
    health.beat()
    assert health.check_live(300).startswith("alive 0 s ago")

    old = time.time() - 301
    os.utime(tmp_path / "health" / "alive", (old, old))

    with pytest.raises(Unhealthy, match="no word for 301 s, over the limit of 300"):
        health.check_live(300)


def test_only_a_living_process_is_ready_and_a_new_worker_starts_with_nothing_said(tmp_path: Path) -> None:
    health = Health(tmp_path)
    health.begin(["upscale"])
    health.beat()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"ready-{gone.pid}").write_text("2026.11")
    with pytest.raises(Unhealthy, match="no process of it has its model loaded yet"):
        health.check_ready()
    health.loaded("2026.11")
    assert health.check_ready().endswith(f"2026.11 loaded by process {os.getpid()}")

    health.begin(["train"])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["queues"]
    assert health.queues() == ["train"]


def test_a_probe_without_the_folder_says_what_to_set(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VDSR_")}

    told = vdsr({**clean, "VDSR_STATE_DIR": str(tmp_path)}, "health")

    assert told.returncode == 2
    assert "VDSR_HEALTH_DIR is not set" in told.stderr
