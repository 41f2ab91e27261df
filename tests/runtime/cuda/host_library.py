"""C++ beside the tests, compiled for the host: the kernels' own source, the driver that the tests play."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NATIVE = ROOT / "runtime" / "native"
BUILD = ROOT / "build" / "tests-cuda"


def compiler() -> str | None:
    """A C++ compiler of this machine, or None."""
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")


def build(name: str, *sources: str, options: tuple[str, ...] = ()) -> Path:
    """The shared library of files of this folder; kept in build/ as long as no source changes."""
    found = compiler()
    if found is None:
        raise FileNotFoundError("no C++ compiler")
    inputs = sorted(
        {*(HERE / source for source in sources), *(NATIVE / "cuda").iterdir(), *NATIVE.glob("core/numerics/*.hpp")}
    )
    digest = hashlib.sha256(repr((found, options)).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    library = BUILD / digest.hexdigest()[:16] / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / name
            flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
            paths = [str(HERE / source) for source in sources]
            subprocess.run(
                [found, *flags, f"-I{NATIVE}", *options, *paths, "-o", str(made), "-ldl", "-pthread"], check=True
            )
            os.replace(made, library)
    return library


@functools.cache
def host_kernels() -> ctypes.CDLL:
    """The kernels; their one function is ``arcflow_host_launch`` of host_kernels.cpp."""
    library = ctypes.CDLL(str(build("libhost_kernels.so", "host_kernels.cpp")))
    launch = library.arcflow_host_launch
    launch.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]
    launch.restype = ctypes.c_int
    return library
