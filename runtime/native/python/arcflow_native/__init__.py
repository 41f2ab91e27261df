"""The native runtime: ``Model(folder).generate(["a red apple"])``, and where its library and headers lie.

Most programs want ``runtime.Pipeline.open(..., host="native")``, which stands on this module. C++ programs find the
package for CMake in :func:`cmake_dir`.
"""

from __future__ import annotations

from pathlib import Path

from arcflow_native._core import Cancel, Model, library_version, noise, verify_bundle
from arcflow_native._errors import NativeError

__all__ = [
    "Cancel",
    "Model",
    "NativeError",
    "cmake_dir",
    "include_dir",
    "library_path",
    "library_version",
    "noise",
    "verify_bundle",
]

_HERE = Path(__file__).resolve().parent


def cmake_dir() -> Path:
    """The folder of ``ArcFlowConfig.cmake``: give it to CMake as ``ArcFlow_DIR``."""
    return _HERE / "lib" / "cmake" / "ArcFlow"


def include_dir() -> Path:
    """The folder that holds ``arcflow/arcflow.h`` and ``arcflow/arcflow.hpp``."""
    return _HERE / "include"


def library_path() -> Path:
    """The shared library."""
    return _HERE / "lib" / "libarcflow_runtime.so"
