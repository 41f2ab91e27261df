"""The pipeline over the real `CudaDevice`, through the real bindings of CUDA, with a driver that the tests play."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cuda.device import kernels
from tests.runtime.cuda import host_library
from tests.runtime.cuda.device.test_device import BUILD, ROOT, _driver


@pytest.mark.skipif(not host_library.compiler(), reason="there is no compiler for the played driver")
def test_the_whole_way_through_the_driver(small: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(_driver()), kernels.ENVIRONMENT: str(BUILD / "cache")}
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.runtime.cuda.device.whole", str(small)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
