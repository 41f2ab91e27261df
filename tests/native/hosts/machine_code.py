"""What a disassembler prints of a cubin: the instructions of each kernel, and how many loads are under way at once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(\S+)\s*(.*?)\s*;")
_LABEL = re.compile(r"\s*\.L\w+:")

Phase = list[list[str]]
"""Blocks that run from end to end, of instructions without their predicates; barriers divide a kernel into phases."""


def disassembled(cubin: Path) -> dict[str, list[Phase]]:
    """The phases of each kernel of a cubin, by name. Skips the test where there is no nvdisasm."""
    listing = subprocess.run([_nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    kernels: dict[str, list[Phase]] = {}
    phases: list[Phase] = []
    for line in listing.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            phases = kernels.setdefault(found[1], [[[]]])
        elif _LABEL.match(line):
            phases[-1].append([])
        elif found := _INSTRUCTION.match(line):
            phases[-1][-1].append(f"{found[1]} {found[2]}")
            if found[1].startswith("BAR"):
                phases.append([[]])
    return kernels


def instructions(phases: Sequence[Phase]) -> str:
    """All of a kernel, an instruction a line."""
    return "\n".join(line for phase in phases for block in phase for line in block)


def loads_under_way(phase: Phase) -> int:
    """The most loads of 16 bytes that a block of the phase has issued before it touches what one of them brings.

    What a load fills, and the pair or four that an instruction names by its first register, begin at multiples of the
    same powers of two: a register that is named is enough to see that they overlap.
    """
    most = 0
    for block in phase:
        under_way: list[set[int]] = []
        for line in block:
            touched = {int(number) for number in re.findall(r"\bR(\d+)\b", line)}
            loaded = re.match(r"LDG\S*\.128\S* R(\d+)", line)
            fills = set(range(int(loaded[1]), int(loaded[1]) + 4)) if loaded else set()
            under_way = [registers for registers in under_way if not registers & (touched | fills)]
            if loaded:
                under_way.append(fills)
                most = max(most, len(under_way))
    return most


def _nvdisasm() -> str:
    """Of a CUDA toolkit, or of the package nvidia-cuda-nvdisasm."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvdisasm"))
    found = shutil.which("nvdisasm") or (str(packaged[-1]) if packaged else None)
    if found is None:
        pytest.skip("no disassembler: install the package nvidia-cuda-nvdisasm, or a CUDA toolkit with nvdisasm")
    return found
