"""The device on a real GPU: every kernel against golden vectors and numpy, graphs, events, memory that is exhausted."""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys

import pytest

from tests.runtime.cuda.host_library import ROOT


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not ctypes.util.find_library("cuda"):
        pytest.skip("no NVIDIA driver")
    command = [sys.executable, "-m", "tests.runtime.cuda.scenarios", "on_gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["capability"].startswith("sm")
