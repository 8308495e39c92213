"""Is the table of formats in the documents what really happens, and is nothing lost without a word?"""

from __future__ import annotations

import dataclasses

import format_matrix
import numpy as np
import pytest

from worker.images import Picture


def test_the_documented_table_is_what_happens() -> None:
    assert format_matrix.documented() == format_matrix.table(), "run python tests/format_matrix.py"


def test_every_property_is_kept_converted_as_documented_noted_or_refused_with_a_code() -> None:
    cells = format_matrix.matrix()
    assert len(cells) == 21
    known = {"kept", "note", "RGB", "RGBA", "`unsupported`"}
    assert {cell for row in cells.values() for cell in row.values()} == known


def test_a_property_that_vanishes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a decoder that forgets XMP, and one that mistakes the colours."""
    whole = format_matrix.decode

    def forgets(data: bytes, *, max_pixels: int) -> Picture:
        picture = whole(data, max_pixels=max_pixels)
        return dataclasses.replace(picture, extras=dataclasses.replace(picture.extras, xmp=None))

    def mistakes(data: bytes, *, max_pixels: int) -> Picture:
        picture = whole(data, max_pixels=max_pixels)
        wrong = picture.pixels // 2 if data.startswith(b"RIFF") else picture.pixels
        return dataclasses.replace(picture, pixels=np.ascontiguousarray(wrong))

    monkeypatch.setattr(format_matrix, "decode", forgets)
    assert format_matrix.matrix()["XMP"]["PNG"] == "LOST"
    monkeypatch.setattr(format_matrix, "decode", mistakes)
    assert format_matrix.matrix()["8-bit RGB"]["WEBP"] == "LOST"
