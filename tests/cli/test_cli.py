"""The command line as a user meets it: as processes, with their output and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import VDSR, make_photos, vdsr, wait_until
from PIL import Image


def test_help_and_import_load_nothing_heavy() -> None:
    code = "import sys, cli.main, vdsr, worker; cli.main.run(['--help']); print(*sys.modules, file=sys.stderr)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()

    assert not {"torch", "numpy", "PIL", "celery", "kombu", "redis", "boto3", "rich"} & set(loaded)


def test_every_command_has_help_with_its_name() -> None:
    from click.testing import CliRunner

    from cli.main import COMMANDS, root

    for name in COMMANDS:
        result = CliRunner().invoke(root, [name, "--help"])
        assert result.exit_code == 0
        assert name in result.output


def test_the_client_never_loads_torch() -> None:
    code = "import sys, worker.client, cli.submit, cli.status; print('torch' in sys.modules, 'boto3' in sys.modules)"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "False False\n"


@pytest.mark.redis
def test_upscale_needs_nothing_and_tells_every_picture(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "사진", 3)

    result = vdsr(state, "upscale", tmp_path / "사진")

    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["image", "output", "bicubic", "VDSR", "gain"]
    assert lines[1].split()[:4] == ["0000.jpg", "48", "x", "32"]
    assert "mean of 3 images" in result.stdout
    assert "self-degradation" in result.stdout
    assert Image.open(tmp_path / "사진-x2" / "0002.png").size == (48, 32)


@pytest.mark.redis
def test_upscale_with_a_bad_picture_ends_with_3_and_says_which(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"")

    result = vdsr(state, "upscale", tmp_path / "in", tmp_path / "out", "--json")

    assert result.returncode == 3
    summary = json.loads(result.stdout)
    assert (summary["images"]["done"], summary["failures"]) == (2, {"empty": 1})


@pytest.mark.redis
def test_a_second_terminal_needs_no_settings_while_dev_runs(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 4)
    dev = subprocess.Popen([VDSR, "dev"], env=state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: vdsr(state, "list").returncode == 0)
        submitted = vdsr(state, "submit", tmp_path / "in")
        job = submitted.stdout.strip()
        assert submitted.stdout == f"{job}\n"
        assert vdsr(state, "wait", job, "--timeout", "60").returncode == 0
        status = json.loads(vdsr(state, "status", job, "--json").stdout)
        assert set(status) >= {"id", "state", "images", "failures", "psnr", "model"}
        assert status["images"] == {"total": 4, "done": 4, "failed": 0, "skipped": 0, "ignored": 0}
        assert "4 of 4 images (4 done)" in vdsr(state, "status", job).stdout
        assert job in vdsr(state, "list").stdout
        assert vdsr(state, "status", "nonsense").returncode == 5
        assert vdsr(state, "retry", job).stderr.endswith("has no failed images\n")
        assert vdsr(state, "cancel", job).stderr.endswith("had already ended: completed\n")
        assert vdsr(state, "resume", tmp_path / "in-x2").returncode == 5
        second = vdsr(state, "dev")
        assert (second.returncode, "already runs in" in second.stderr) == (2, True)
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(40) == 130
    assert vdsr(state, "status", job).returncode == 6  # its Redis is gone


@pytest.mark.redis
def test_a_cancelled_job_goes_on_and_the_same_submit_is_the_same_job(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 30)
    slowly = ("--model", "timed:0.5", "--no-score")  # or it would be done before it is cancelled
    dev = subprocess.Popen([VDSR, "dev"], env=state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: vdsr(state, "list").returncode == 0)
        job = vdsr(state, "submit", tmp_path / "in", *slowly).stdout.strip()
        again = vdsr(state, "submit", tmp_path / "in", *slowly)
        assert (again.stdout.strip(), "nothing was queued twice" in again.stderr) == (job, True)
        other = vdsr(state, "submit", tmp_path / "in", tmp_path / "in-x2", "--scale", "3")
        assert (other.returncode, job in other.stderr) == (2, True)
        assert vdsr(state, "cancel", job).returncode == 0
        wait_until(lambda: "ended" in json.loads((tmp_path / "in-x2/.vdsr" / job / "job.json").read_text()))
        resumed = vdsr(state, "resume", tmp_path / "in-x2", "--job", job, "--wait")
        assert (resumed.returncode, resumed.stdout.strip()) == (0, job)
        assert _images(state, job) == {"total": 30, "done": 30, "failed": 0, "skipped": 0, "ignored": 0}
    finally:
        dev.send_signal(signal.SIGINT)
        assert dev.wait(40) == 130


@pytest.mark.redis
def test_jobs_survive_a_restart_of_dev(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 30, size=(100, 100))
    job = ""
    for attempt in range(2):
        dev = subprocess.Popen([VDSR, "dev"], env=state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: vdsr(state, "list").returncode == 0)
            if attempt == 0:
                job = vdsr(state, "submit", tmp_path / "in").stdout.strip()
                wait_until(lambda job=job: _images(state, job)["done"] >= 3)
            else:
                assert vdsr(state, "wait", job, "--timeout", "110").returncode == 0
                assert _images(state, job) == {"total": 30, "done": 30, "failed": 0, "skipped": 0, "ignored": 0}
        finally:
            dev.kill()  # not asked: the plug is pulled
            dev.wait()
        wait_until(lambda: vdsr(state, "list").returncode == 6)


def _images(state: dict[str, str], job: str) -> dict[str, int]:
    return dict(json.loads(vdsr(state, "status", job, "--json").stdout)["images"])


@pytest.mark.redis
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_an_interrupted_upscale_leaves_no_process_behind(
    state: dict[str, str], tmp_path: Path, name: str, code: int
) -> None:
    make_photos(tmp_path / "in", 40, size=(150, 150))
    command = subprocess.Popen([VDSR, "upscale", tmp_path / "in"], env=state, stderr=subprocess.PIPE, text=True)
    out = tmp_path / "in-x2"
    wait_until(lambda: len(list(out.rglob("*.png"))) >= 2)

    command.send_signal(getattr(signal, name))
    assert command.wait(60) == code

    wait_until(lambda: not _mentions(state["VDSR_STATE_DIR"], str(command.pid)))
    assert not list(out.rglob("*.tmp"))
    done = len([p for p in out.rglob("*.*") if p.suffix in (".png", ".jpg")])
    assert 2 <= done < 40
    if name == "SIGINT":
        assert f"{done} images are finished" in command.stderr.read()
    command.stderr.close()


def _mentions(*words: str) -> list[str]:
    """Workers that a command with one of these words in its name or folder started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "celery" in line and any(f"-{word}@" in line or word in line for word in words):
                found.append(line)
    return found


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["submit", "./nothing"], 2, "does not exist"),
        (["submit", "NOT/a/bucket"], 2, "is no S3 bucket name"),
        (["upscale", "{empty}"], 7, "no image found at"),
        (["upscale", "{photos}", "{photos}"], 2, "originals could be replaced"),
        (["upscale", "{photos}", "-s", "0.5"], 2, "it must be from 1 to 16"),
        (["upscale", "{photos}", "--quality", "0"], 2, "it must be from 1 to 100"),
        (["status", "x"], 6, "set VDSR_REDIS_URL, start 'vdsr dev', or use 'vdsr upscale'"),
        (["statsu", "x"], 2, "did you mean 'status'?"),
        (["eval", "{empty}"], 7, "no image found"),
        (["eval", "{photos}", "-s", "1"], 2, "must be above 1"),
        (["models", "show", "{photos}/0000.jpg"], 2, "not a VDSR checkpoint"),
    ],
)
def test_misuse_is_one_clear_line_and_an_exit_code(
    state: dict[str, str], tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    photos = make_photos(tmp_path / "photos", 1)
    words = [word.format(empty=tmp_path / "empty", photos=photos) for word in words]

    result = vdsr(state, *words, VDSR_REDIS_URL="redis://localhost:1/0")

    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_setting_that_does_not_parse_is_named(state: dict[str, str]) -> None:
    result = vdsr(state, "list", VDSR_TILE="large")

    assert (result.returncode, result.stderr) == (2, "vdsr: VDSR_TILE is 'large'; give a whole number\n")


def test_a_misspelt_setting_is_named(state: dict[str, str]) -> None:
    result = vdsr(state, "list", VDSR_DEVCE="cuda")

    assert (result.returncode, result.stderr) == (2, "vdsr: VDSR_DEVCE is no setting; did you mean VDSR_DEVICE?\n")


@pytest.mark.redis
def test_a_bare_destination_is_a_folder_here_and_weights_may_be_given_by_a_relative_path(
    state: dict[str, str], tmp_path: Path
) -> None:
    import shutil

    from vdsr import checkpoint

    make_photos(tmp_path / "in", 1)
    shutil.copy(checkpoint.SHIPPED, tmp_path / "my.safetensors")
    words = [VDSR, "upscale", "in", "large"]

    result = subprocess.run(
        words,
        env={**state, "VDSR_WEIGHTS": "my.safetensors"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "large" / "0000.jpg").exists()


def test_eval_prints_the_documented_json(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "hr", 2, size=(48, 36))
    (tmp_path / "hr" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    result = vdsr(state, "eval", tmp_path / "hr", "--scale", "2", "--scale", "1.5", "--json")

    report = json.loads(result.stdout)
    assert result.returncode == 3
    assert set(report["scales"]) == {"2", "1.5"}
    assert report["scales"]["2"]["images"] == 2
    assert set(report["scales"]["2"]["vdsr"]) == {"psnr_y", "ssim"}
    assert [row["image"] for row in report["scales"]["2"]["per_image"]] == ["0000.jpg", "sub/0001.png"]
    assert report["protocol"]["shave"] == "scale, rounded up, on each side"


def test_doctor_says_what_works_and_what_does_not(state: dict[str, str], tmp_path: Path) -> None:
    good = vdsr(state, "doctor", str(tmp_path))
    bad = vdsr(state, "doctor", VDSR_REDIS_URL="redis://user:hidden@localhost:1/0", VDSR_DEVICE="cuda:99")

    assert (good.returncode, bad.returncode) == (0, 1)
    assert "readable; no objects" in good.stdout
    assert "broken  Redis: cannot reach Redis at redis://user:***@localhost:1/0" in bad.stdout
    assert "cuda:99 asked for" in bad.stdout
    assert "hidden" not in bad.stdout + bad.stderr


@pytest.mark.redis
def test_a_job_goes_on_when_its_redis_is_killed(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 40, size=(100, 100))
    command = subprocess.Popen([VDSR, "upscale", tmp_path / "in", "--json"], env=state, stdout=subprocess.PIPE)
    for count in (2, 15):
        wait_until(lambda count=count: len(list((tmp_path / "in-x2").rglob("*.png"))) >= count)
        servers = [pid for pid in _descendants(command.pid) if _name(pid) == "valkey-server"]
        assert len(servers) == 1
        os.kill(servers[0], signal.SIGKILL)

    output, _ = command.communicate(timeout=150)

    assert command.returncode == 0
    assert json.loads(output)["images"] == {"total": 40, "done": 40, "failed": 0, "skipped": 0, "ignored": 0}


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *_descendants(child))]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
