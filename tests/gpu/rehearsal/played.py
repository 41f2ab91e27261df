"""A machine with a GPU, played: driver and management library of main memory, a sanitizer that finds nothing."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.runtime.cuda import host_library

HERE = Path(__file__).parent
_SANITIZER = """#!/bin/sh
# Runs the program behind its own options, as compute-sanitizer does.
while [ "$1" != "{python}" ]; do shift; done
"$@" || exit $?
echo "========= ERROR SUMMARY: 0 errors"
"""


def play(folder: Path) -> dict[str, str]:
    """The environment in which programs find that machine; what it is made of lies in ``folder``."""
    folder.mkdir()
    driver = host_library.build(
        "libcuda.so.1",
        "fake_driver.cpp",
        "host_kernels.cpp",
        str(HERE / "stub_on_host.cpp"),
        options=("-Wl,-soname,libcuda.so.1", "-Wl,--wrap=arcflow_host_launch"),
    )
    management = host_library.build(
        "libnvidia-ml.so.1", str(HERE / "fake_nvml.cpp"), options=("-Wl,-soname,libnvidia-ml.so.1",)
    )
    for library in (driver, management):
        shutil.copy(library, folder)
    sanitizer = folder / "compute-sanitizer"
    sanitizer.write_text(_SANITIZER.format(python=sys.executable))
    sanitizer.chmod(0o755)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",  # For torch, should it have been built for CUDA: it would ask more of the driver.
        "OMP_NUM_THREADS": "1",
    }
