"""Suggestions, examples, completion and logs."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import click
import pytest
from helpers import VDSR, make_photos, pipeline, run_line, vdsr

from cli.main import COMMANDS, root
from worker.embedded import LocalRedis
from worker.parts import Part, Parts
from worker.settings import load_settings


def commands() -> list[click.Command]:
    """All of them, with those of groups."""
    context = click.Context(root)
    found = [root.get_command(context, name) for name in COMMANDS]
    return [*found, *(sub for group in found if isinstance(group, click.Group) for sub in group.commands.values())]


def test_every_command_has_an_example_that_names_it() -> None:
    assert [c.name for c in commands() if not (c.epilog or "").startswith("Example: ")] == []
    assert [c.name for c in commands() if c.name not in c.epilog] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", ".", "--overwrit", "never"], "'--overwrite'"),
        (["submit", ".", "--format", "jpg"], "Did you mean 'jpeg'?"),
        (["upscale", ".", "--overwrite", "alwasy"], "Did you mean 'always'?"),
        (["models", "lsit"], "'list'"),
        (["worker", "--queue", "upscael"], "Did you mean 'upscale'?"),
        (["compeltion", "bash"], "did you mean 'completion'?"),
    ],
)
def test_what_is_misspelt_is_told_with_the_nearest(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli.main import run

    assert run(words) == 2
    assert said in capsys.readouterr().err


def completed(state: dict[str, str], *words: str, **more: str) -> list[str]:
    """What a real bash would offer for the last of these words."""
    script = f"""
        eval "$({VDSR} completion bash)"
        COMP_WORDS=(vdsr {" ".join(words[:-1])} "{words[-1]}"); COMP_CWORD={len(words)}
        _vdsr_completion {VDSR} && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(
        ["bash", "-c", script], env={**state, **more}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.redis
def test_bash_completes_commands_options_choices_jobs_and_models(state: dict[str, str], tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 1)
    (Path(state["VDSR_STATE_DIR"]) / "models").mkdir()
    with LocalRedis(Path(state["VDSR_STATE_DIR"])):
        job = vdsr(state, "submit", tmp_path / "in").stdout.strip()

        assert completed(state, "sub") == ["submit"]
        assert completed(state, "submit", "--dr") == ["--dry-run"]
        assert completed(state, "upscale", "--overwrite", "st") == ["stale"]
        assert completed(state, "status", "") == [job]
        assert completed(state, "upscale", "--model", "sh") == ["shipped"]


def test_completion_is_silent_and_quick_where_redis_does_not_answer(state: dict[str, str]) -> None:
    began = time.monotonic()

    with socket.create_server(("127.0.0.1", 0)) as silent:  # without a limit of our own: a minute
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert completed(state, "status", "", VDSR_REDIS_URL=url) == []

    assert time.monotonic() - began < 30


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_their_script(state: dict[str, str], shell: str) -> None:
    result = vdsr(state, "completion", shell)

    assert result.returncode == 0
    assert f"_VDSR_COMPLETE={shell}_complete" in result.stdout


def test_logs_tell_every_image_from_the_record_at_the_destination(state: dict[str, str], tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 2)
    (source / "bad\n.png").write_bytes(b"")
    line = pipeline(source)
    rows = run_line(line, ["0000.jpg", "bad\n.png", "sub/0001.png"])
    parts = Parts(line.job, load_settings({}))
    parts.write_job()
    parts.add_manifest(0, Part((), 0, "", last=True))
    parts.add_results(0, rows)

    told = vdsr(state, "logs", f"{source}-x2")
    as_json = vdsr(state, "logs", f"{source}-x2", "--json")

    assert told.returncode == 0, told.stderr
    assert [text.split()[2] for text in told.stdout.splitlines()] == ["done", "failed", "done"]
    assert "bad\\n.png  (empty: " in told.stdout.splitlines()[1]
    assert [json.loads(text)["code"] for text in as_json.stdout.splitlines()] == [None, "empty", None]
