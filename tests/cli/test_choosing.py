"""Do sizes and named files do from the command line what they say?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from helpers import VDSR, vdsr
from PIL import Image


def folder(path: Path) -> Path:
    path.mkdir()
    for name, size in {"small.png": (40, 30), "large.png": (90, 60), "new\nline.png": (20, 20)}.items():
        Image.new("RGB", size, "teal").save(path / name)
    return path


def test_named_files_become_as_wide_as_asked_and_what_is_large_enough_is_skipped(
    state: dict[str, str], tmp_path: Path
) -> None:
    source = folder(tmp_path / "in")
    names = b"small.png\0new\nline.png\0./large.png\0gone.png\0"

    words = [VDSR, "upscale", source, "--width", "80", "--files-from", "-", "-0", "--json"]
    result = subprocess.run(words, env=state, input=names, capture_output=True, timeout=300, check=False)

    assert result.returncode == 3, result.stderr
    told = json.loads(result.stdout)
    assert told["images"] == {"total": 4, "done": 2, "failed": 1, "skipped": 1, "ignored": 0}
    assert told["failures"] == {"not_found": 1}
    assert (told["scale"], told["target"]) == (None, "80 px wide")
    assert Image.open(tmp_path / "in-w80/small.png").size == (80, 60)
    assert Image.open(tmp_path / "in-w80/new\nline.png").size == (80, 80)
    assert not (tmp_path / "in-w80/large.png").exists()

    report = vdsr(state, "report", tmp_path / "in-w80", "-o", tmp_path / "r" / "report.html")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "r/report.html").read_text()
    assert "80 px wide" in page
    assert "source and output are no longer those of this job" not in page


def test_words_that_exclude_each_other_are_refused_before_anything_is_read(
    state: dict[str, str], tmp_path: Path
) -> None:
    source = folder(tmp_path / "in")
    (tmp_path / "list").write_text("small.png\n../out.png\n")
    refused = {
        ("--scale", "2", "--width", "80"): "give one or the other",
        ("-0",): "how the names in --files-from end",
        ("--files-from", str(tmp_path / "none")): "cannot be read: No such file",
        ("--files-from", str(tmp_path / "list")): "line 2 of --files-from is '../out.png'",
        ("--max-mp", "0"): "max-mp is 0",
        ("--max-mp", "1", "--name-template", "{name}-{scale}.{format}"): "each image has its own",
    }
    for words, said in refused.items():
        result = vdsr(state, "upscale", source, *words)
        assert (result.returncode, said in result.stderr) == (2, True), (words, result.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "list"]
