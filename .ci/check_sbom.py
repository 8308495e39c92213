"""Does a bill of materials name every package that is installed here, with its version and where it comes from?

.venv/bin/python .ci/check_sbom.py build/sbom.json
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def missing(sbom: dict[str, Any], installed: dict[str, str]) -> list[str]:
    """What is installed and not in it, or there in another version or without a package URL."""
    itself = sbom["metadata"].get("component", {"name": ""})
    named = {_plain(each["name"]): each for each in [*sbom["components"], itself]}
    amiss = []
    for name, version in sorted(installed.items()):
        found = named.get(_plain(name))
        if found is None:
            amiss.append(f"{name} {version} is not in it")
        elif found.get("version") != version:
            amiss.append(f"{name} {version} is there as {found.get('version')}")
        elif _plain(name) != "vdsr" and not found.get("purl", "").startswith("pkg:pypi/"):
            amiss.append(f"{name} has no package URL")
    return amiss


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sbom = json.loads(Path(sys.argv[1]).read_text())
    amiss = missing(sbom, {each.metadata["Name"]: each.version for each in distributions()})
    print("\n".join(amiss) or f"{sys.argv[1]}: CycloneDX {sbom['specVersion']}, {len(sbom['components'])} components")
    sys.exit(bool(amiss))
