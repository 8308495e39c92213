"""Which packages does a worker need? Those that pyproject.toml names, one a line, for a layer without our own code."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
print(*project["dependencies"], *project["optional-dependencies"]["train"], sep="\n")
