"""How much of what a file tells about itself goes into its output? All, nothing, or whose it is.

The colour profile, the resolution and the orientation are how a picture looks, and stay in any case.
"""

from __future__ import annotations

from dataclasses import replace

from worker.exif import copyright_exif
from worker.images import Extras
from worker.xmp import copyright_xmp


def reduced(extras: Extras, metadata: str) -> Extras:
    """What is written of a source's extras.

    Args:
        metadata: one of `worker.formats.METADATA`.
    """
    if metadata == "keep":
        return extras
    if metadata == "strip":
        return replace(extras, exif=None, xmp=None)
    return replace(
        extras, exif=extras.exif and copyright_exif(extras.exif), xmp=extras.xmp and copyright_xmp(extras.xmp)
    )
