"""How large does an image become? By a factor, or by what makes it fit into a box, up to so many megapixels.

The proportions stay: of a width and a height, the one that is reached first decides. Nothing is ever made smaller.
"""

from __future__ import annotations

import math

from vdsr.errors import ImageUnsupported
from vdsr.resize import scaled_size
from worker.jobs import MOST_SCALE, Options

TYPICAL = 4 / 3
"""Width of a photograph over its height, where only one of them is asked for and images were not looked at."""


def scale_for(options: Options, size: tuple[int, int]) -> float | None:
    """The factor for an image of this (height, width); None if it is as large already as it may become.

    Raises:
        ImageUnsupported: the factor would be over the limit.
    """
    height, width = size
    scale = options.scale
    if options.sized:
        scale = min(
            options.width / width if options.width else math.inf,
            options.height / height if options.height else math.inf,
        )
    if options.max_megapixels:
        scale = min(scale, _capped(options.max_megapixels * 1e6, size))
    if scale < 1 or (scaled_size(size, scale) == size and (options.sized or scale != options.scale)):
        return None
    if scale > MOST_SCALE:
        raise ImageUnsupported(
            f"{width:,} x {height:,} would have to become {scale:.1f} times as large for {options.target}, over the "
            f"limit of {MOST_SCALE}; ask for less, or leave it out with --exclude"
        )
    return scale


def most_scale(options: Options, size: tuple[int, int]) -> float:
    """The largest factor for an image of this (height, width), which EXIF may still turn."""
    return max(1.0, *(_within(options, turned) for turned in (size, size[::-1])))


def expected_pixels(options: Options, pixels: float) -> float:
    """Of the output, where only the number of pixels of the input is guessed."""
    if options.width and options.height:
        made = float(options.width * options.height)
    elif options.width:
        made = options.width**2 / TYPICAL
    elif options.height:
        made = options.height**2 * TYPICAL
    else:
        made = pixels * options.scale**2
    return min(made, options.max_megapixels * 1e6) if options.max_megapixels else made


def large_enough(options: Options, size: tuple[int, int]) -> str:
    """Why an image of this (height, width) is skipped."""
    height, width = size
    return f"it is {width:,} x {height:,} already, and would not become larger by {options.target}; copy it as it is"


def _within(options: Options, size: tuple[int, int]) -> float:
    try:
        return scale_for(options, size) or 1.0
    except ImageUnsupported:
        return 1.0  # it is refused once it is known how it stands


def _capped(most: float, size: tuple[int, int]) -> float:
    """The largest factor by which no more than so many pixels come out, sides being rounded up."""
    height, width = size
    scale = math.sqrt(most / (height * width))
    if math.prod(scaled_size(size, scale)) > most:  # then by whole pixels of the longer side
        longer = max(size)
        scale = math.floor(longer * scale) / longer
        while scale > 0 and math.prod(scaled_size(size, scale)) > most:
            scale -= 1 / longer
    return scale
