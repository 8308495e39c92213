"""What goes into an image and a release? Nothing that is secret, nothing unnamed, and no audit that was none."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted(ROOT.glob("deploy/**/Dockerfile*"))
SECRETS = (
    ".env", "vdsr.toml", "worker/.env", "cli/vdsr.toml", "worker/release.key", "vdsr/weights/own.pem", "cli/.netrc",
    "worker/credentials", "worker/id_ed25519", ".aws/credentials", "vdsr/.git-credentials", "worker/.pypirc",
    "cli/redis.acl",
)  # fmt: skip


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


# ---- images ---------------------------------------------------------------------------------------------------------


def is_ignored(path: str, rules: list[str]) -> bool:
    """As .dockerignore says: of the rules that match a path or a folder above it, the last one counts."""
    ignored = False
    for rule in rules:
        negated, pattern = rule.startswith("!"), rule.removeprefix("!").strip("/")
        above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        if any(_matches(each, pattern) for each in above):
            ignored = not negated
    return ignored


def _matches(path: str, pattern: str) -> bool:
    """Go's filepath.Match, whose `*` stops at a slash, and `**` for any number of folders."""
    parts = [".*" if p == "**" else fnmatch.translate(p)[len("(?s:") : -len(r")\Z")].replace(".*", "[^/]*")
             for p in pattern.split("/")]  # fmt: skip
    return re.fullmatch("/".join(parts).replace(".*/", "(?:.*/)?"), path) is not None


def copied(dockerfile: Path) -> list[str]:
    """What a Dockerfile takes from the build context."""
    text = dockerfile.read_text().replace("\\\n", " ")
    lines = [line.split()[1:-1] for line in text.splitlines() if re.match(r"(COPY|ADD)\s", line)]
    return [
        word for words in lines if not any(w.startswith("--from") for w in words) for word in words if word[0] != "-"
    ]


def test_the_rules_are_read_as_docker_reads_them() -> None:
    rules = ["*", "!worker", "**/*.key", "**/.env*", "worker/x"]
    paths = ("a", "worker/a.py", "worker/b/c.key", "worker/.env.local", "worker/x/y")
    assert [is_ignored(path, rules) for path in paths] == [
        True, False, True, True, True,
    ]  # fmt: skip


def test_images_take_named_places_only_and_no_secret_that_may_lie_there() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")]
    assert DOCKERFILES
    for dockerfile in DOCKERFILES:
        places = copied(dockerfile)
        assert places, dockerfile
        assert not {".", "./", "*"} & set(places), f"{dockerfile} copies the whole context"
        for secret in SECRETS:
            within = any(secret == place or secret.startswith(f"{place.rstrip('/')}/") for place in places)
            assert not within or is_ignored(secret, rules), f"{dockerfile} would take {secret}"
        for path in subprocess.check_output(["git", "ls-files", *places], cwd=ROOT, text=True).splitlines():
            assert not is_ignored(path, rules), f"{path} is needed, and left out"


def test_no_instruction_puts_a_secret_into_an_image() -> None:
    for dockerfile in DOCKERFILES:
        named = re.findall(r"^\s*(?:ENV|ARG)\s+(\S+)", dockerfile.read_text(), re.MULTILINE)
        wrong = [name for name in named if re.search(r"(?i)password|secret|token|credential|access_key|_url=.*@", name)]
        assert wrong == [], dockerfile


# ---- releases -------------------------------------------------------------------------------------------------------


def package(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": "1", "vulns": [], **more}


HOLE = package("b", vulns=[{"id": "CVE-1", "fix_versions": ["2"]}])
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("reports", "code", "required", "said"),
    [
        ({"pypi": [package("a")]}, 0, 0, "audited 1 packages: no known hole"),
        ({"pypi": [package("a"), HOLE]}, 1, 1, "b 1: CVE-1, mended in 2"),
        ({"pypi": [SKIPPED], "osv": "no route"}, 0, 1, "NOTHING WAS AUDITED"),
        ({"pypi": [SKIPPED], "osv": [HOLE]}, 1, 1, "b 1: CVE-1"),
        (
            {"pypi": [package("a"), SKIPPED], "osv": "no route"},
            0,
            1,
            "audited 1 of 2 packages, no known hole; THE REST",
        ),
        ({"pypi": "no route", "osv": "no route"}, 0, 1, "pypi: no route"),
    ],
)
def test_an_audit_that_was_none_says_so(reports: dict[str, Any], code: int, required: int, said: str) -> None:
    judge = script("audit").judge
    assert said in judge(reports, require=False).text
    assert (judge(reports, require=False).code, judge(reports, require=True).code) == (code, required)


def test_a_bill_of_materials_that_lacks_a_package_is_told() -> None:
    missing = script("check_sbom").missing
    components = [{"name": "Pillow", "version": "1", "purl": "pkg:pypi/pillow@1"}, {"name": "torch", "version": "2"}]
    sbom = {"components": components, "metadata": {"component": {"name": "vdsr", "version": "0"}}}
    assert missing(sbom, {"pillow": "1", "vdsr": "0"}) == []
    assert missing(sbom, {"pillow": "2", "torch": "2", "zlib_ng": "1"}) == [
        "pillow 2 is there as 1", "torch has no package URL", "zlib_ng 1 is not in it",
    ]  # fmt: skip
