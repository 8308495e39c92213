"""How is a large image cut up so that the pieces give what the whole would? By tiles with a halo.

An output pixel of the network sees `halo` pixels to each side (one a layer). A tile that is read with that margin,
and of which only the inside is kept, therefore equals the whole image. At the image's own border the margin ends
there, and the network's zero padding does what it does for the whole image.
"""

from __future__ import annotations

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
