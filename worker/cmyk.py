"""How do the four inks of a CMYK picture become colours? By the colour profile that comes with it, or not at all."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from vdsr.errors import ImageUnsupported

BAND = 256
"""Rows converted at a time, so that the picture is not held a third time."""
NOTE = "CMYK became sRGB by its colour profile"


def to_srgb(profile: Any) -> ImageCms.ImageCmsTransform:
    """What turns the inks of this profile into sRGB: relative colorimetric, with black point compensation.

    Raises:
        ImageUnsupported: there is no profile, or none that can be used for inks.
    """
    if not isinstance(profile, bytes) or profile[16:20] != b"CMYK":
        raise ImageUnsupported(
            "its colours are CMYK, and no colour profile in it says how these inks look; "
            "convert the picture to RGB, or save it with its profile"
        )
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "CMYK",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as exc:
        raise ImageUnsupported(
            f"its colours are CMYK, and its colour profile cannot be used ({exc}); convert the picture to RGB"
        ) from exc


def srgb_pixels(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> NDArray[np.uint8]:
    """(H, W, 3) of a loaded CMYK picture."""
    out = np.empty((image.height, image.width, 3), np.uint8)
    for start in range(0, image.height, BAND):
        stop = min(start + BAND, image.height)
        rows = transform.apply(image.crop((0, start, image.width, stop)))
        out[start:stop] = np.asarray(rows)
    return out
