"""Builds the compiled kernels of vdsr/native, one library for each kind of processor.

They are optional: without a C++ compiler the package installs all the same, and works with torch alone, slower.
"""

import platform

from setuptools import Extension, setup

VARIANTS = (
    {"avx512": ["-march=x86-64-v4"], "avx2": ["-march=x86-64-v3"]}
    if platform.machine().lower() in ("x86_64", "amd64")
    else {"generic": []}
)

setup(
    ext_modules=[
        Extension(
            f"vdsr.native._{name}",
            sources=["vdsr/native/inference.cpp", "vdsr/native/training.cpp"],
            depends=["vdsr/native/network.h", "vdsr/native/winograd.h"],
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-pthread", *flags],
            extra_link_args=["-pthread"],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ]
)
