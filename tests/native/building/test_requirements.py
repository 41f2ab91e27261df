"""A machine that lacks the core's libraries is told which, by the names under which they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_what_is_missing_is_said_at_once_with_its_packages(tmp_path: Path) -> None:
    absent = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("nlohmann_json", "ZLIB")]
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={ROOT}/.deps/usr", "-DARCFLOW_CUDA=OFF", *absent],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    said = " ".join(done.stderr.split())  # CMake breaks lines as it likes
    assert said.count("CMake Error") == 1
    assert (
        "ArcFlow's C++ runtime needs nlohmann-json (3.10 or newer), zlib: install (Debian and Ubuntu) "
        "nlohmann-json3-dev zlib1g-dev, or run scripts/native-deps.sh and add -DCMAKE_PREFIX_PATH=" in said
    )
