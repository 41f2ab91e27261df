"""What is packed for a machine with a GPU: one architecture's code, wheels without what is not used."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from foundation.errors import ArcFlowError
from gpu.travel import site
from gpu.travel.fatbin import MAGIC, containers, entries, kernels, prune


def entry(architecture: int, content: bytes, kind: int = 2) -> bytes:
    """An entry as nvcc writes it, uncompressed, padded to eight bytes."""
    content = content.ljust(-(-len(content) // 8) * 8, b"\0")
    header = struct.pack("<HHIQI", kind, 0x101, 64, len(content), 0).ljust(28, b"\0")
    return (header + struct.pack("<I", architecture)).ljust(64, b"\0") + content


def container(*parts: bytes) -> bytes:
    """A container of entries."""
    body = b"".join(parts)
    return struct.pack("<IHHQ", MAGIC, 1, 16, len(body)) + body


def library(*parts: bytes) -> bytearray:
    """A 64-bit ELF file of two sections: the names, and the containers with eight bytes between them."""
    names, code = b"\0.nv_fatbin\0.shstrtab\0", bytes(8).join(parts)
    offset = 64 + len(code)
    headers = struct.pack("<IIQQQQ", 1, 1, 0, 0, 64, len(code)).ljust(64, b"\0")
    headers += struct.pack("<IIQQQQ", 12, 3, 0, 0, offset, len(names)).ljust(64, b"\0")
    elf = b"\x7fELF\x02".ljust(40, b"\0") + struct.pack("<Q", offset + len(names))
    elf = elf.ljust(58, b"\0") + struct.pack("<HHH", 64, 2, 1)
    return bytearray(elf + code + names + headers)


def test_one_architecture_is_left_and_nothing_moves() -> None:
    wanted, other = b"\0.text.kernel\0" + b"A" * 90, b"B" * 200
    made = library(
        container(entry(80, other), entry(90, wanted), entry(120, other)),
        container(entry(80, b"small")),
        container(entry(90, b".text.MoeGemm\0 .text.MoeOther\0" + bytes(80))),
        container(entry(90, b".text.MoeGemm\0 .text.plain\0"), entry(90, b"no kernel")),
        container(entry(80, b"C" * 50), entry(90, b"PTX" * 9, kind=1)),
    )
    before, size = list(containers(made)), len(made)
    done = prune(made, 90, "[Mm]oe")
    after = list(containers(made))
    assert (done.containers, done.kept, done.left_out) == (5, 3, 1) and len(made) == size
    assert [one.start for one in after] == [one.start for one in before]
    left = [[(one.architecture, one.kind) for one in entries(made, each)] for each in after]
    # What has nothing left is the smallest code for another GPU: "small".
    assert left == [[(90, 2)], [(80, 2)], [(80, 2)], [(90, 2), (90, 2)], [(80, 2)]]
    (kept,) = entries(made, after[0])
    assert kernels(made, kept) == {b"kernel"} and made.count(b"B") == 0
    with pytest.raises(ArcFlowError, match="no machine code for sm_75, only for sm_80, sm_90"):
        prune(made, 75)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"text", "no library for 64-bit Linux"),
        (library()[:50], "ends too early"),
        (library()[:64], "ends too early"),
        (library().replace(b".nv_fatbin", b".no_fatbin"), "holds no CUDA code"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ArcFlowError, match=words):
        prune(bytearray(data), 90)


_SOURCE = """
__global__ void wanted(float* x) { x[threadIdx.x] *= 2.0f; }
extern "C" int call(float* x) { wanted<<<1, 32>>>(x); return static_cast<int>(cudaGetLastError()); }
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_a_library_of_nvcc_still_loads(tmp_path: Path) -> None:
    source, made = tmp_path / "one.cu", tmp_path / "libone.so"
    source.write_text(_SOURCE)
    targets = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in (80, 90)]
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", *targets, str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nvcc does not build here: {done.stderr[-200:]}")
    data = bytearray(made.read_bytes())
    assert {one.architecture for each in containers(data) for one in entries(data, each)} >= {80, 90}
    prune(data, 90)
    made.write_bytes(data)
    assert {one.architecture for each in containers(data) for one in entries(data, each) if one.size > 1000} == {90}
    assert ctypes.CDLL(str(made)).call(None) != 0  # There is no GPU, or no memory at 0; it is loaded all the same.


def test_wheels_become_one_archive_without_what_is_not_used(tmp_path: Path) -> None:
    wheel, out = tmp_path / "sample-1.0-py3-none-any.whl", tmp_path / "out"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("onnxruntime/__init__.py", "VERSION = 1")
        packed.writestr("onnxruntime/tools/large.py", "unused")
        packed.writestr("onnxruntime/capi/libcuda_part.so", bytes(library(container(entry(80, b"x"), entry(90, b"y")))))
    size = site.pack([wheel], out / "site", out / "site.tar.xz", 90, ["onnxruntime/capi/libcuda_part.so"])
    with tarfile.open(out / "site.tar.xz") as archive:
        assert archive.getnames() == ["onnxruntime/__init__.py", "onnxruntime/capi/libcuda_part.so"]
        archive.extractall(tmp_path / "there", filter="data")
    assert size == (out / "site.tar.xz").stat().st_size
    there = (tmp_path / "there" / "onnxruntime" / "capi" / "libcuda_part.so").read_bytes()
    assert [one.architecture for each in containers(there) for one in entries(there, each)] == [90]


def test_wheels_that_cannot_be_had_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArcFlowError, match=r"wheels for CPython 2\.7 cannot be had: .*; see --python"):
        site.fetch(["./no-such-wheel-here"], "2.7", tmp_path / "wheels")
