"""Where the native build is, for the tests that drive its programs. ``make native`` makes it."""

from __future__ import annotations

import json
import os
import subprocess
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = "ARCFLOW_NATIVE_BUILD"
"""Environment variable with another build folder than ``build/native``."""


@pytest.fixture(scope="session")
def native_tree() -> Path:
    """The build folder: ``bin`` with programs and tests, ``lib`` with the library, ``lib/arcflow`` with the hosts."""
    tree = Path(os.environ.get(ENVIRONMENT) or ROOT / "build" / "native").resolve()
    if not (tree / "bin").is_dir():
        pytest.fail(f"there is no native build in {tree}: run `make native`, or set ${ENVIRONMENT}", pytrace=False)
    return tree


@pytest.fixture(scope="session")
def native_build(native_tree: Path) -> Path:
    """The folder of built programs: ``native_build / "probe_noise"``, ``native_build / "arcflow-cli"``."""
    return native_tree / "bin"


@pytest.fixture(scope="session")
def native_library(native_tree: Path) -> Path:
    """The built ``libarcflow_runtime.so``."""
    return native_tree / "lib" / "libarcflow_runtime.so"


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """The libonnxruntime of the installed wheel, found without importing it."""
    from runtime.hosts.native import onnxruntime_library

    path = onnxruntime_library()
    if path is None:
        pytest.fail("the package onnxruntime holds no libonnxruntime.so: reinstall it", pytrace=False)
    return path


@pytest.fixture(scope="session")
def same_zlib(native_build: Path) -> bool:
    """Whether the core was linked with the release of zlib that Python uses: only then are PNG files equal in bytes."""
    line = json.dumps({"rgb8": "000000", "width": 1, "height": 1, "settings": None})
    done = subprocess.run([native_build / "probe_png"], input=line, capture_output=True, text=True, check=True)
    release: str = json.loads(done.stdout)["zlib"]
    return release == zlib.ZLIB_RUNTIME_VERSION
