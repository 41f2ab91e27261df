"""The CUDA kernels compiled for every architecture by NVRTC, as a program without nvcc does it. No GPU needed.

The native build compiles the same source with nvcc, where there is one.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from cuda.bindings import nvrtc

NATIVE = Path(__file__).parents[2] / "runtime" / "native"
SOURCE = NATIVE / "cuda" / "arcflow_kernels.cu"
HEADERS = ("core/formula.hpp", "cuda/device.cuh", "cuda/solver.cuh", "cuda/elements.cuh")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TYPES = ("f32", "f16", "bf16")
WIDE = tuple(f"arcflow_advance_{name}" for name in TYPES)
OTHERS = ("arcflow_normal", "arcflow_unpack", "arcflow_to_rgb8", "arcflow_find_nonfinite")
ENTRY_POINTS = {*WIDE, *(f"{name}_any" for name in WIDE), *OTHERS}


@functools.cache
def _compiled(architecture: int) -> tuple[str, bytes]:
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_keeps_to_its_registers(architecture: int) -> None:
    log, cubin = _compiled(architecture)
    assert cubin.startswith(b"\x7fELF")
    assert "warning" not in log
    found = dict(re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log, re.DOTALL))
    assert set(found) == ENTRY_POINTS
    assert re.findall(r"(\d+) bytes spill (?:stores|loads)", log).count("0") == len(re.findall("bytes spill", log))
    # Three blocks of 128 threads of the solver at least share the 65,536 registers of a multiprocessor.
    assert max(int(found[name]) for name in WIDE) <= 168


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_solver_moves_sixteen_bytes_at_a_time(architecture: int, tmp_path: Path) -> None:
    disassembler = _nvdisasm()
    cubin = tmp_path / "kernels.cubin"
    cubin.write_bytes(_compiled(architecture)[1])
    listing = subprocess.run([disassembler, cubin], capture_output=True, text=True, check=True).stdout
    sections: dict[str, str] = {}
    for part in re.split(r"^\s*\.section\s+", listing, flags=re.MULTILINE):
        if found := re.match(r"\.text\.(\w+)", part):
            sections[found[1]] = sections.get(found[1], "") + part
    for name in WIDE:
        loads = re.findall(r"\bLDG\S*", sections[name])
        stores = re.findall(r"\bSTG\S*", sections[name])
        # Two batches of eight modes under way; gates, rates and state besides. Narrow ones read a stretch's ragged end.
        assert sum(".128" in load for load in loads) >= 16 + 3, (name, loads)
        assert stores and all(".128" in store for store in stores), (name, stores)
        assert not re.search(r"\b(LDL|STL)\b", sections[name]), f"{name} keeps registers in memory"
        assert not re.search(r"\bD(ADD|MUL|FMA)\b", sections[name]), f"{name} computes in float64"
    assert re.search(r"\bD(MUL|FMA)\b", sections["arcflow_normal"]), "the noise is defined in float64"


def test_the_list_of_entry_points_is_complete() -> None:
    head = SOURCE.read_text(encoding="utf-8").split("#include")[0]
    listed = set(re.findall(r"^// (arcflow_\w+)", head, re.MULTILINE))
    listed |= {f"arcflow_advance_{name}" for name in TYPES if f"_{name}" in head}
    listed |= {f"arcflow_advance_{name}_any" for name in TYPES if f"_{name}_any" in head}
    assert listed == ENTRY_POINTS


def _nvdisasm() -> str:
    """Of the package nvidia-cuda-nvdisasm, or of a CUDA toolkit."""
    found = shutil.which("nvdisasm")
    if found is None:
        packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
        assert packaged, "the package nvidia-cuda-nvdisasm is not installed"
        found = str(packaged[-1])
    return found
