"""VDSR super-resolution: arrays in, arrays out. `from vdsr import Upscaler; Upscaler().upscale(image, scale=2)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Upscaler", "__version__"]

if TYPE_CHECKING:
    from vdsr.upscale import Upscaler


def __getattr__(name: str) -> Any:
    if name == "Upscaler":  # torch is loaded when an upscaler is wanted, not by `import vdsr`
        from vdsr.upscale import Upscaler

        return Upscaler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
