"""The library builds on a machine that has a C++ compiler, CMake and the core's libraries, and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOOLS = ("cc", "c++", "gcc", "g++", "as", "ld", "ar", "ranlib", "nm", "objcopy", "objdump", "strip", "readelf", "sh")

pytestmark = pytest.mark.slow


def test_without_cuda_tensorrt_onnxruntime_and_python(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    path = tmp_path / "bin"  # all that is on PATH: neither nvcc nor python among it
    path.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is not None:
            (path / tool).symlink_to(found)
    cmake, ninja = (shutil.which(name, path=f"{bin_folder}:{os.environ['PATH']}") for name in ("cmake", "ninja"))
    assert cmake and ninja
    build = ROOT / "build" / "minimal"
    shutil.rmtree(build, ignore_errors=True)
    environment = {"PATH": str(path), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    # Debug: the code that assertions guard is compiled here, and nowhere else.
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Debug"]
    for command in ([cmake, "--preset", "minimal", *options], [cmake, "--build", "--preset", "minimal", "-j", "2"]):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    assert (build / "lib" / "libarcflow_runtime.so").exists()
    assert not (build / "lib" / "arcflow").exists()
    cache = (build / "CMakeCache.txt").read_text()
    assert not any(name in cache for name in ("CUDA_COMPILER", "ONNXRUNTIME_INCLUDE_DIR", "Python_EXECUTABLE"))
