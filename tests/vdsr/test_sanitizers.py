"""Does the compiled code stay within its memory, within C++, and free of races? GCC's sanitizers watch it run.

And does the machine code for matrix units say what was meant, where no processor can run it? A signal handler does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vdsr import device

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "vdsr" / "native"
DRIVER, TRAP = ROOT / "tests" / "native" / "driver.cpp", ROOT / "tests" / "native" / "trap.cpp"
CODE = {
    "vectors": [NATIVE / "inference.cpp", NATIVE / "training.cpp"],
    "integers": [NATIVE / "int16.cpp"],
    "matrices": [NATIVE / "amx.cpp", "-DVDSR_EMULATE_AMX"],
}


def compiled(program: Path, *arguments: str | Path) -> Path:
    command = ["g++", "-std=c++17", "-g", "-pthread", "-ffp-contract=off", *map(str, arguments), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


def said(program: Path) -> str:
    stop_at_once = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    run = subprocess.run([program], env=stop_at_once, capture_output=True, text=True, timeout=3600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(params=["address,undefined", "thread"])
def sanitizer(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A flag that works here, down to the running of a program."""
    flag = f"-fsanitize={request.param}"
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    (tmp_path / "nothing.cpp").write_text("int main() {}")
    try:
        subprocess.run([compiled(tmp_path / "nothing", flag, tmp_path / "nothing.cpp")], check=True, timeout=60)
    except subprocess.CalledProcessError:
        pytest.skip(f"g++ has no {flag} here")
    return flag


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE)
def test_the_sanitizers_find_nothing(code: str, sanitizer: str, tmp_path: Path) -> None:
    flags = [sanitizer, "-fno-sanitize-recover=all", "-O1", "-march=native"]

    assert said(compiled(tmp_path / "driver", *flags, DRIVER, *CODE[code]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.skipif("avx512_bf16" not in device._cpuinfo(), reason="the code around the matrix instructions needs it")
def test_the_machine_code_for_matrix_units_gives_the_bits_of_the_emulation(tmp_path: Path) -> None:
    flags = ["-O3", "-march=x86-64-v4", "-mavx512bf16"]  # as in setup.py
    real = compiled(tmp_path / "real", *flags, DRIVER, TRAP, NATIVE / "amx.cpp")
    emulated = compiled(tmp_path / "emulated", "-O3", "-march=x86-64-v3", DRIVER, *CODE["matrices"])

    assert said(real) == said(emulated)
