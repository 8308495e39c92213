"""How is a large image cut up so that the pieces give what the whole would? By tiles with a halo.

An output pixel of the network sees `halo` pixels to each side (one a layer). A tile that is read with that margin,
and of which only the inside is kept, therefore equals the whole image. At the image's own border the margin ends
there, and the network's zero padding does what it does for the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One tile's extent along one axis."""

    start: int
    stop: int
    """start..stop is what this tile contributes to the output."""
    read_start: int
    read_stop: int
    """read_start..read_stop is what the network must see for that."""

    @property
    def kept(self) -> slice:
        """Where the contribution lies inside what was read."""
        return slice(self.start - self.read_start, self.stop - self.read_start)


def spans(length: int, tile: int, halo: int) -> Iterator[Span]:
    """Cut an axis into tiles that contribute up to `tile` pixels each, in order, covering it once."""
    if tile < 1:
        raise ValueError(f"tile is {tile}; it must be at least 1 pixel")
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        yield Span(start, stop, max(0, start - halo), min(length, stop + halo))


def equal_spans(start: int, stop: int, *, length: int, tile: int, halo: int, step: int = 1) -> list[Span]:
    """Cover start..stop of an axis by tiles that read equally many pixels, so that they can be stacked.

    The last one is shifted back over its neighbour where it would reach beyond the end. Padding it instead would be
    wrong: the network has zeros around each layer at the image's border, and padding only around the first.

    Args:
        tile: about how many pixels each contributes; none reads more than that and two halos.
        step: of the pixels that are read, so that images of many sizes have few shapes of tiles.
    """
    low, high = max(0, start - halo), min(length, stop + halo)
    longest = tile + 2 * halo
    if high - low <= longest:
        return [Span(start, stop, low, high)]
    inside = high - low - 2 * halo
    count = math.ceil(inside / tile)
    least = math.ceil(inside / count) + 2 * halo
    read = min(longest, math.ceil(least / step) * step)
    covered: list[Span] = []
    for number in range(count):
        read_start = min(low + number * (read - 2 * halo), high - read)
        kept_stop = stop if number == count - 1 else read_start + read - halo
        covered.append(Span(start, kept_stop, read_start, read_start + read))
        start = kept_stop
    return covered
