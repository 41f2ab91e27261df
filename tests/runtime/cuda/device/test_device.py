"""`CudaDevice` over the real bindings of CUDA and a driver that the tests play (fake_driver.cpp).

The played driver holds our calls to their signatures, order and arguments. It says nothing of what a GPU does.
"""

from __future__ import annotations

import ctypes.util
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.cuda.device import kernels
from tests.runtime.cuda import host_library
from tests.runtime.cuda.host_library import BUILD, ROOT

Run = Callable[..., str]

pytestmark = pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler")

SCENARIOS = (
    "kernels",
    "describe",
    "everything_is_given_back",
    "a_network_run_once",
    "nothing_waits_unasked",
    "large_arrays",
    "graphs",
    "marks_in_graphs",
    "refused_by_the_work",
    "refused_uploads",
    "failing_work",
    "work_inside_work",
    "many_keys",
    "another_thread",
    "bad_arguments",
)


@functools.cache
def _driver() -> Path:
    """The folder of the played libcuda.so.1; the kernels' code for it lies in the cache."""
    options = ("-Wl,-soname,libcuda.so.1",)
    folder = host_library.build("libcuda.so.1", "fake_driver.cpp", "host_kernels.cpp", options=options).parent
    before = os.environ.get(kernels.ENVIRONMENT)
    os.environ[kernels.ENVIRONMENT] = str(BUILD / "cache")
    try:
        kernels.kernel_image(90)  # NVRTC asks a driver for more than the played one knows, so not in that process.
    finally:
        if before is None:
            del os.environ[kernels.ENVIRONMENT]
        else:
            os.environ[kernels.ENVIRONMENT] = before
    return folder


@pytest.fixture(scope="module")
def played() -> Iterator[Run]:
    """Runs scenarios over the played driver."""
    with _scenarios(LD_LIBRARY_PATH=str(_driver()), **{kernels.ENVIRONMENT: str(BUILD / "cache")}) as run:
        yield run


@contextmanager
def _scenarios(**environment: str) -> Iterator[Run]:
    """Runs a scenario with things that are wrong (see fake_driver.cpp), and gives what it printed."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.runtime.cuda.scenarios"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(scenario: str, wrong: str = "", **more: str) -> str:
            assert process.stdin is not None and process.stdout is not None
            asked = {"scenario": scenario, "environment": {"ARCFLOW_FAKE_CUDA": wrong, **more}}
            print(json.dumps(asked), file=process.stdin, flush=True)
            done = json.loads(process.stdout.readline())
            assert done["status"] == 0, done["said"]
            return str(done["said"]).strip()

        yield run
        process.communicate()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_device(played: Run, scenario: str) -> None:
    played(scenario)


def test_memory_that_is_exhausted(played: Run) -> None:
    played("memory", "memory=1048576")


def test_work_that_failed_on_the_gpu(played: Run) -> None:
    played("failed_work", "fail=700")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("begin=1", "recording a CUDA graph: CUDA_ERROR_OF_A_KIND (1: as the driver says)"),
        (
            "end=901",
            "recording a CUDA graph: a CUDA graph cannot hold it, CUDA_ERROR_OF_A_KIND (901: ",
        ),
        ("instantiate=2", "making a CUDA graph: the GPU's memory is exhausted"),
    ],
)
def test_graphs_that_the_driver_refuses(played: Run, wrong: str, words: str) -> None:
    assert played("refused_by_the_driver", wrong).startswith(words)


@pytest.mark.parametrize(
    ("wrong", "ordinal", "words"),
    [
        (
            "version=12080",
            "0",
            "the NVIDIA driver knows CUDA 12.8, and CUDA 13.0 or newer is needed: update it",
        ),
        ("init=100", "0", "CUDA finds no GPU: see nvidia-smi and $CUDA_VISIBLE_DEVICES"),
        ("devices=0", "0", "CUDA finds no GPU: see nvidia-smi and $CUDA_VISIBLE_DEVICES"),
        ("init=803", "0", "the NVIDIA driver is not installed well"),
        ("init=999", "0", "the NVIDIA driver does not start"),
        ("", "1", "there is no GPU 1; this machine has 0"),
        ("devices=2", "-1", "there is no GPU -1; this machine has 0 to 1"),
    ],
)
def test_no_usable_gpu(played: Run, wrong: str, ordinal: str, words: str) -> None:
    said = played("opening", wrong, ORDINAL=ordinal)
    assert said.startswith(words)
    assert "\n" not in said


def test_no_driver() -> None:
    """Neither a library of that name nor the machine's own is found."""
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has a driver")
    with _scenarios(LD_LIBRARY_PATH="") as run:
        said = run("opening")
    assert said == (
        "a GPU is needed, and there is no NVIDIA driver on this machine (no libcuda): install one, or use a bundle for "
        "the target cpu"
    )


def test_no_bindings(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['cuda.bindings'] = None\n")
    with _scenarios(PYTHONPATH=str(tmp_path)) as run:
        said = run("opening")
    assert said.startswith("a GPU needs the package cuda-bindings (")
    assert said.endswith("pip install 'arcflow[cuda]', or use a bundle for the target cpu")


def test_code_that_the_driver_does_not_take(played: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv(kernels.ENVIRONMENT, str(tmp_path))
    kernels.kernel_image(90)
    (cached,) = (tmp_path / "kernels").iterdir()
    wrong = b"no machine code"
    cached.write_bytes(hashlib.sha256(wrong).digest() + wrong)
    said = played("opening", **{kernels.ENVIRONMENT: str(tmp_path)})
    assert said.startswith("loading the kernels: the driver does not take the kernels, ")
    assert said.endswith("update the NVIDIA driver")
