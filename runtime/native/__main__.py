"""``python -m runtime.native --cmake-dir``: where the installed C++ library is, for build systems.

And where the installed ``onnxruntime`` package keeps the library that the C++ core loads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from foundation.cli import ArgumentParser, run
from runtime.errors import BackendError

_PLACES = {
    "cmake_dir": Path("lib/cmake/ArcFlow"),
    "include_dir": Path("include"),
    "library": Path("lib/libarcflow_runtime.so"),
}
_ONNXRUNTIME = "onnxruntime"
_EXAMPLES = """examples:
  cmake -S . -B build -DArcFlow_DIR=$(python -m runtime.native --cmake-dir)
  cc service.c -I$(python -m runtime.native --include-dir) $(python -m runtime.native --library)
  export ARCFLOW_ONNXRUNTIME=$(python -m runtime.native --onnxruntime)
"""


def build_parser() -> ArgumentParser:
    """The command line of ``runtime.native``."""
    parser = ArgumentParser(
        prog="python -m runtime.native", description="Where the installed C++ library is.", epilog=_EXAMPLES
    )
    place = parser.add_mutually_exclusive_group(required=True)
    for name, help in (
        ("cmake_dir", "the folder of ArcFlowConfig.cmake"),
        ("include_dir", "the folder of arcflow/arcflow.h"),
        ("library", "the shared library"),
        (_ONNXRUNTIME, "the library of the installed onnxruntime package, for $ARCFLOW_ONNXRUNTIME and --library"),
    ):
        option = "--" + name.replace("_", "-")
        place.add_argument(option, dest="place", action="store_const", const=name, help=help)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the place; returns 0. Raises BackendError where arcflow-native, or onnxruntime, is not installed."""
    name = build_parser().parse_args(argv).place
    if name == _ONNXRUNTIME:
        from runtime.hosts.native import onnxruntime_library

        library = onnxruntime_library()
        if library is None:
            raise BackendError("the package onnxruntime is not installed, or holds no library: pip install onnxruntime")
        sys.stdout.write(f"{library}\n")
        return 0
    spec = find_spec("arcflow_native")
    if spec is None or spec.origin is None:
        raise BackendError(
            "the package arcflow-native is not installed; in ArcFlow's source tree: pip install ./runtime/native/python"
        )
    path = Path(spec.origin).resolve().parent / _PLACES[name]
    if not path.exists():
        raise BackendError(f"{path} is missing: reinstall arcflow-native (pip install ./runtime/native/python)")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
