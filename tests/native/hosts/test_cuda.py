"""The CUDA kernels compiled for every architecture, and the machine code of the solver. No GPU needed.

By NVRTC, as a program without nvcc does it; and by nvcc, as the C++ hosts have it, where there is one.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda.bindings import nvrtc

from tests.native.hosts import machine_code

NATIVE = Path(__file__).parents[3] / "runtime" / "native"
SOURCE = NATIVE / "cuda" / "arcflow_kernels.cu"
HEADERS = ("core/numerics/formula.hpp", "cuda/device.cuh", "cuda/solver.cuh", "cuda/elements.cuh")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TYPES = ("f32", "f16", "bf16")
WIDE = tuple(f"arcflow_advance_{name}" for name in TYPES)
FIXED = tuple(f"{name}_modes16" for name in WIDE)
OTHERS = ("arcflow_normal", "arcflow_unpack", "arcflow_to_rgb8", "arcflow_find_nonfinite")
ENTRY_POINTS = {*WIDE, *FIXED, *(f"{name}_any" for name in WIDE), *OTHERS}


@functools.cache
def _by_nvrtc(architecture: int) -> tuple[str, bytes]:
    """What ptxas said, and the cubin."""
    texts = [(NATIVE / name).read_bytes() for name in HEADERS]
    names = [name.encode() for name in HEADERS]
    status, program = nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), len(names), texts, names)
    assert int(status) == 0
    options = [b"--std=c++17", f"--gpu-architecture=sm_{architecture}".encode(), b"--ptxas-options=-v"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert int(status) == 0, log.decode()
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return log.decode(), bytes(cubin)


def _by_nvcc(architecture: int) -> tuple[str, bytes]:
    """The same by the compiler of the C++ hosts. Skips the test where there is none."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc on this machine")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        options = ["--std=c++17", "-cubin", f"-arch=sm_{architecture}", f"-I{NATIVE}", "-Xptxas=-v"]
        done = subprocess.run([compiler, *options, SOURCE, "-o", cubin], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr, cubin.read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles(architecture: int) -> None:
    log, cubin = _by_nvrtc(architecture)
    assert cubin.startswith(b"\x7fELF")
    assert set(re.findall(r"entry function '(\w+)'", log)) == ENTRY_POINTS
    _check_registers(log)


@pytest.mark.parametrize("architecture", [80, 89, 90, 120])
@pytest.mark.parametrize("compiled", [_by_nvrtc, _by_nvcc])
def test_the_solver_issues_its_loads_before_it_uses_one(
    compiled: Callable[[int], tuple[str, bytes]], architecture: int, tmp_path: Path
) -> None:
    log, content = compiled(architecture)
    _check_registers(log)
    cubin = tmp_path / "kernels.cubin"
    cubin.write_bytes(content)
    kernels = machine_code.disassembled(cubin)
    for name, batch in ((name, 16 if name in FIXED else 8) for name in (*WIDE, *FIXED)):
        # Of a thread's first place before the coefficients are made; of what follows after the last barrier.
        ahead = [machine_code.loads_under_way(phase) for phase in kernels[name]]
        assert (ahead[0], ahead[-1]) == (batch, batch), (name, ahead)
        code = machine_code.instructions(kernels[name])
        stores = re.findall(r"\bSTG\S*", code)
        assert stores and all(".128" in store for store in stores), (name, stores)
        assert not re.search(r"\b(LDL|STL)\b", code), f"{name} keeps registers in memory"
        assert not re.search(r"\bD(ADD|MUL|FMA)\b", code), f"{name} computes in float64"
    noise = machine_code.instructions(kernels["arcflow_normal"])
    assert re.search(r"\bD(MUL|FMA)\b", noise), "the noise is defined in float64"


def _check_registers(log: str) -> None:
    """What ptxas said of registers, and that none went to memory."""
    assert "warning" not in log
    found = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert spills and set(spills) == {"0"}
    # Four blocks of 128 threads of the solver share the 65,536 registers of a multiprocessor.
    used = {name: int(found[name]) for name in (*WIDE, *FIXED)}
    assert max(used.values()) <= 128, used


def test_the_list_of_entry_points_is_complete() -> None:
    head = SOURCE.read_text(encoding="utf-8").split("#include")[0]
    listed = set(re.findall(r"^// (arcflow_\w+)", head, re.MULTILINE))
    listed |= {f"arcflow_advance_{name}" for name in TYPES if f"_{name}" in head}
    for rest in ("any", "modes16"):
        listed |= {f"arcflow_advance_{name}_{rest}" for name in TYPES if f"_{name}_{rest}" in head}
    assert listed == ENTRY_POINTS
