"""The scripts in benchmarks/: they take from one another and from the package, and nothing else notices a break."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py"))


@pytest.fixture
def among_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where they are run; afterwards "engine" and "scale" are nobody's names again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_finds_all_that_it_imports(
    name: str, among_the_scripts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_from_file_location(f"benchmark of {name}", BENCHMARKS / name)  # codecs is the standard library's, too
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look

    spec.loader.exec_module(module)


def test_every_script_is_here() -> None:
    assert {"engine.py", "gpu.py", "page.py", "pipeline.py", "scale.py"} <= set(SCRIPTS)
