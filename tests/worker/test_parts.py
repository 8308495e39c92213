"""The record of a job: how it is read, however large."""

from __future__ import annotations

import threading

import pytest

from worker.errors import UsageError
from worker.parts import READERS, in_order


def test_parts_are_read_a_few_ahead_and_given_in_their_order() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def read(chunk: int) -> str:
        with lock:
            begun.append(chunk)
        return f"part {chunk}"

    found = in_order(read, range(1000))

    assert next(found) == (0, "part 0")
    assert len(begun) <= READERS + 1
    assert [text for _, text in found] == [f"part {n}" for n in range(1, 1000)]
    assert sorted(begun) == list(range(1000))


def test_a_part_that_cannot_be_read_rises_where_it_stands() -> None:
    def read(chunk: int) -> int:
        if chunk == 20:
            raise UsageError("part 20 is damaged")
        return chunk

    seen: list[int] = []
    with pytest.raises(UsageError, match="part 20 is damaged"):
        seen.extend(number for number, _ in in_order(read, range(100)))

    assert seen == list(range(20))
