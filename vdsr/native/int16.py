"""Which code in 16-bit integers does this processor run faster than the fp32 code?"""

from __future__ import annotations

from functools import lru_cache

import torch

from vdsr.device import cpu_has_vnni
from vdsr.native import Library, built


@lru_cache(maxsize=1)
def library() -> Library | None:
    """None where there is none, or where it was not built.

    With AVX-512 its products want VNNI; without, they cost three instructions of a half-wide kind where fp32 takes two.
    """
    vectors = torch.backends.cpu.get_cpu_capability()
    if vectors == "AVX512":
        return built("avx512", precision="int16") if cpu_has_vnni() else None
    return built("avx2", precision="int16") if vectors == "AVX2" else None
