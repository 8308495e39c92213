"""What the documents say of settings, codes and exit codes is what the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import reference_pages

from vdsr import errors as science
from worker import errors as service
from worker.settings import Settings, load_settings, mask

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_documented() -> None:
    text = reference_pages.fill((DOCS / "reference" / "settings.md").read_text())

    assert [f.name for f in fields(Settings) if f"`VDSR_{f.name.upper()}`" not in text] == []


def test_every_failure_code_is_documented() -> None:
    text = (DOCS / "formats.md").read_text()
    classes = [*vars(science).values(), *vars(service).values()]
    codes = {c.code for c in classes if isinstance(c, type) and hasattr(c, "code")} - {"image_error"}

    assert {"empty", "truncated", "disk_full", "unsafe_name"} <= codes
    assert [code for code in codes | {"crashed", "name_collision"} if f"`{code}`" not in text] == []


def test_the_readme_stays_short() -> None:
    assert len((DOCS.parent / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("VDSR_TILE", "-1", "VDSR_TILE is -1; it must be at least 0"),
        ("VDSR_LEASE_S", "1", "VDSR_LEASE_S is 1; it must be at least 3"),
        ("VDSR_DEVICE", "tpu", "VDSR_DEVICE is 'tpu'; it must be auto, cpu, cuda or cuda:N"),
        ("VDSR_PRECISION", "fp8", "VDSR_PRECISION is 'fp8'; it must be one of auto, fp32, bf16"),
        ("VDSR_MAX_PIXELS", "many", "VDSR_MAX_PIXELS is 'many'; give a whole number"),
        ("VDSR_REDIS_URL", "http://:pw@x", r"VDSR_REDIS_URL is 'http://:\*\*\*@x'; it must start with redis://"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_remedy(variable: str, value: str, message: str) -> None:
    with pytest.raises(service.UsageError, match=message):
        load_settings({variable: value})


def test_settings_come_from_the_environment_and_others_variables_are_left_alone(tmp_path: Path) -> None:
    settings = load_settings(
        {"VDSR_STATE_DIR": str(tmp_path), "VDSR_MAX_PIXELS": "1_000", "VDSR_SUBMIT_SCALE": "3", "VDSR_DEVICE": ""}
    )

    assert (settings.max_pixels, settings.device, settings.redis_url) == (1000, "auto", "redis://localhost:6379/0")


def test_passwords_do_not_show() -> None:
    assert mask("rediss://user:secret@host:1/2?a=b") == "rediss://user:***@host:1/2?a=b"
    assert mask("redis://host:1") == "redis://host:1"


def test_every_promise_is_shown_by_a_test_that_there_is() -> None:
    tests = Path(__file__).parents[1]
    known = {
        name for path in tests.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "promises.md").read_text()))

    assert len(named) > 30
    assert sorted(named - known) == []
