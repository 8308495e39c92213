"""What tests under faults share: the table of what each fault cost, printed at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tally import Tally, table, write_json

_tallies: list[Tally] = []


@pytest.fixture
def tally() -> Tally:
    """A row of the table; the test says which."""
    made = Tally("")
    _tallies.append(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, and the same in the file that FAULTS_JSON names."""
    tallies = [tally for tally in _tallies if tally.runs]
    if not tallies:
        return
    terminalreporter.section("what faults cost")
    terminalreporter.write_line(table(tallies))
    if path := os.environ.get("FAULTS_JSON"):
        write_json(Path(path), tallies)
