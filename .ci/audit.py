"""Which packages of constraints.txt have known holes? Asks pip-audit, and counts what it could look up.

    python .ci/audit.py PIP_AUDIT [--require]

pip-audit says "no known vulnerabilities" and exits 0 also where it could look nothing up, as behind a mirror of PyPI;
and it exits 1 alike for a hole and for a database that cannot be reached. Here the exit code is 1 for a hole. Where no
database answers, it is 0, with a line that says that nothing was audited; with --require, for a release, 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVICES = ("pypi", "osv")
"""Asked one after the other, until one knows the packages."""


@dataclass(frozen=True)
class Verdict:
    """What came of an audit."""

    text: str
    code: int


def judge(reports: dict[str, list[dict[str, Any]] | str], *, require: bool) -> Verdict:
    """What to tell.

    Args:
        reports: by service; pip-audit's "dependencies", or why there are none.
        require: whether not to know is a failure.
    """
    holes, looked_up, why = [], {}, []
    for service, found in reports.items():
        if isinstance(found, str):
            why.append(f"{service}: {found}")
            continue
        known = [package for package in found if "skip_reason" not in package]
        looked_up[service] = (len(known), len(found))
        if len(known) < len(found):
            reason = next(package["skip_reason"] for package in found if "skip_reason" in package)
            why.append(f"{service}: {len(found) - len(known)} of {len(found)} not looked up, such as: {reason}")
        holes += [
            f"{package['name']} {package['version']}: {hole['id']}, mended in {' '.join(hole['fix_versions']) or '-'}"
            for package in known
            for hole in package["vulns"]
        ]
    most, total = max(looked_up.values(), default=(0, 0))
    notes = "".join(f"\n  {line}" for line in why)
    if holes:
        return Verdict("known holes:" + "".join(f"\n  {hole}" for hole in sorted(set(holes))) + notes, 1)
    if not most:
        return Verdict(f"NOTHING WAS AUDITED: no database of known holes answered from here{notes}", int(require))
    if most < total:
        text = f"audited {most} of {total} packages, no known hole; THE REST WAS NOT AUDITED{notes}"
        return Verdict(text, int(require))
    return Verdict(f"audited {total} packages: no known hole", 0)


def ask(pip_audit: str, service: str) -> list[dict[str, Any]] | str:
    """pip-audit's report on constraints.txt, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        words = ["-s", service, "--requirement", "constraints.txt", "--no-deps", "--disable-pip", "--timeout", "15"]
        command = [pip_audit, *words, "--progress-spinner", "off", "--format", "json", "--output", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # a list
        if not report.exists():
            return (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
        found: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
        return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pip_audit")
    parser.add_argument("--require", action="store_true")
    given = parser.parse_args()
    reports: dict[str, list[dict[str, Any]] | str] = {}
    for service in SERVICES:
        reports[service] = ask(given.pip_audit, service)
        if not isinstance(reports[service], str) and all("skip_reason" not in each for each in reports[service]):
            break
    verdict = judge(reports, require=given.require)
    print(verdict.text)
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
