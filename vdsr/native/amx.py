"""May this process use the processor's matrix unit (AMX)?"""

from __future__ import annotations

from functools import lru_cache

from vdsr.device import cpu_has_amx
from vdsr.native import Library, built


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The code for it; None where it was not built, or processor or system do not let this process use it."""
    if not cpu_has_amx():  # asked first: merely to load the library elsewhere could run an instruction of it
        return None
    found = built("amx", precision="bf16")
    if found is None or not found.functions.vdsr_amx_permitted():
        return None
    return found
