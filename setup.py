"""Builds the compiled kernels of vdsr/native, one library for each kind of processor.

They are optional: without a C++ compiler the package installs all the same, and works with torch alone, slower.
"""

import platform

from setuptools import Extension, setup

X86 = platform.machine().lower() in ("x86_64", "amd64")
FLOATS = ["vdsr/native/inference.cpp", "vdsr/native/training.cpp"]
INTEGERS = ["vdsr/native/int16.cpp"]
MATRICES = ["vdsr/native/amx.cpp"]
HEADERS = ("amx", "int16", "interface", "network", "stream", "tiles", "vectors", "winograd")
VARIANTS = (
    {
        "avx512_fp32": (FLOATS, ["-march=x86-64-v4"]),
        "avx2_fp32": (FLOATS, ["-march=x86-64-v3"]),
        "avx512_int16": (INTEGERS, ["-march=x86-64-v4", "-mavx512vnni"]),
        "avx2_int16": (INTEGERS, ["-march=x86-64-v3"]),
        # The matrix instructions are written out, so that any compiler whose assembler knows them will do.
        "amx_bf16": (MATRICES, ["-march=x86-64-v4", "-mavx512bf16"]),
        "amx_emulated_bf16": (MATRICES, ["-march=x86-64-v3", "-DVDSR_EMULATE_AMX"]),  # for tests
    }
    if X86
    else {"generic_fp32": (FLOATS, [])}
)

setup(
    ext_modules=[
        Extension(
            f"vdsr.native._{name}",
            sources=sources,
            depends=[f"vdsr/native/{name}.h" for name in HEADERS],
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-pthread", *flags],
            extra_link_args=["-pthread"],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
        for name, (sources, flags) in VARIANTS.items()
    ]
)
