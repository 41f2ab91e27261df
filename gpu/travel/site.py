"""Python packages for a machine with a GPU and no network, as one archive: wheels, less what is not used there."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from foundation.errors import ArcFlowError
from foundation.files import atomic_file
from gpu.travel.fatbin import prune

PACKAGES = (
    "onnxruntime-gpu==1.31.1",  # The tiny pipeline on its CUDA provider; 256 MB, of which one architecture is kept.
    "msgspec==0.22.0",
    "diffusers==0.42.1",
    "nvidia-cudnn-frontend==1.15.0",  # FP8 attention; later releases need packages of hundreds of megabytes.
)
"""What torch's usual environment lacks."""

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
_LEFT_OUT = (
    "onnxruntime/transformers/*",
    "onnxruntime/tools/*",
    "onnxruntime/quantization/*",
    "onnxruntime/capi/libonnxruntime.so*",  # For C programs: Python's is the module beside it.
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "include/*",
    "*.data/*",
)
PRUNED = ("onnxruntime/capi/libonnxruntime_providers_cuda.so",)
UNWANTED = r"[Mm]oe|MoE|GroupProblemShape"
"""Kernels for mixtures of experts: two thirds of ONNX Runtime's code, and no network of ours has any."""


def fetch(packages: Sequence[str], python: str, wheels: Path) -> None:
    """Wheels of exactly these packages for CPython of that version on x86-64 Linux. Raises ArcFlowError."""
    shutil.rmtree(wheels, ignore_errors=True)
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in _PLATFORMS:
        options += ["--platform", f"{platform}_x86_64"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", *options]
    done = subprocess.run([*command, "-d", str(wheels), *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ArcFlowError(
            f"wheels for CPython {python} cannot be had: {(said or ['pip failed'])[-1]}; see --python, and the network"
        )


def pack(wheels: Sequence[Path], site: Path, archive: Path, capability: int, pruned: Sequence[str] = PRUNED) -> int:
    """Unpack wheels into ``site`` and pack what is used as ``archive`` (.tar.xz); its bytes.

    pruned: libraries of which one architecture's code is kept. Raises ArcFlowError.
    """
    shutil.rmtree(site, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as packed:
            for member in packed.infolist():
                if not any(fnmatch.fnmatch(member.filename, pattern) for pattern in _LEFT_OUT):
                    packed.extract(member, site)
    for name in pruned:
        library = bytearray((site / name).read_bytes())
        done = prune(library, capability, UNWANTED)
        (site / name).write_bytes(library)
        print(
            f"{Path(name).name}: {done.kept} of {done.containers} sources for sm_{capability}, {done.left_out} left "
            f"out, {done.code_bytes / 1e6:.1f} MB of code"
        )
    with atomic_file(archive) as temporary, tarfile.open(temporary, "w:xz") as packed:
        for path in sorted(site.rglob("*")):
            if path.is_file():
                packed.add(path, arcname=path.relative_to(site).as_posix(), recursive=False)
    return archive.stat().st_size
