"""Which packages does a worker need? Those of pyproject.toml with some extras, for a layer without our own code."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
extras = project["optional-dependencies"]
print(
    *project["dependencies"], *(line for name in ("train", "sign", "heif", "otel") for line in extras[name]), sep="\n"
)
