"""The TensorRT host where TensorRT or a GPU is missing: one clear error each, and no crash."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BACKEND_UNAVAILABLE = 3


@pytest.fixture(scope="module")
def module(native_tree: Path) -> Path:
    path = native_tree / "lib" / "arcflow" / "libarcflow_host_tensorrt.so"
    if not path.exists():
        pytest.skip("the TensorRT host was not built: there is no CUDA compiler, or there are no headers of TensorRT")
    return path


def _model(native_build: Path, module: Path, library: Path | str = "", device: int = 0, **environment: str) -> Any:
    run = subprocess.run(
        [native_build / "probe_tensorrt", module, str(library), str(device), __file__],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"} | environment,
    )  # fmt: skip
    assert run.stderr == "", "the module writes to no stream"
    answer = json.loads(run.stdout)
    assert answer["name"] == "tensorrt"
    assert answer["unknown"] is True, "an unknown version of the interface must be refused"
    return answer


def test_it_needs_no_library_to_be_opened(module: Path) -> None:
    """Neither TensorRT nor CUDA's runtime or driver is linked, and only its one symbol is seen."""
    needed = subprocess.run(["readelf", "--dynamic", module], capture_output=True, text=True, check=True).stdout
    assert not [line for line in needed.splitlines() if "NEEDED" in line and ("nvinfer" in line or "cuda" in line)]
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=just-symbols", module],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert symbols.stdout.split() == ["arcflow_host_get_api"]


def test_no_library(native_build: Path, module: Path) -> None:
    if shutil.which("trtexec"):
        pytest.skip("TensorRT is installed")
    answer = _model(native_build, module)
    assert answer["code"] == BACKEND_UNAVAILABLE
    assert "TensorRT was not found" in answer["message"]
    assert "ARCFLOW_TENSORRT" in answer["message"]


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_library_that_is_not_there(native_build: Path, module: Path, tmp_path: Path, way: str) -> None:
    path = tmp_path / "libnvinfer.so"
    if way == "option":
        answer = _model(native_build, module, path)
    else:
        answer = _model(native_build, module, ARCFLOW_TENSORRT=str(path))
    assert answer["code"] == BACKEND_UNAVAILABLE
    assert str(path) in answer["message"]


def test_a_library_that_is_something_else(native_build: Path, module: Path) -> None:
    answer = _model(native_build, module, "libm.so.6")
    assert answer["code"] == BACKEND_UNAVAILABLE
    assert "libm.so.6 is not TensorRT" in answer["message"]


def test_a_real_library_of_another_version(native_build: Path, module: Path) -> None:
    """TensorRT for RTX's own library, opened and asked for its version; a wrong one gets no further."""
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if spec is None or spec.origin is None:
        pytest.skip("TensorRT for RTX is not installed")
    # The package makes links with shorter names when it is first imported; the file itself is always there.
    library = max(Path(spec.origin).parent.glob("libtensorrt_rtx.so.*"), key=lambda path: len(path.name))
    answer = _model(native_build, module, library)
    assert answer["code"] == BACKEND_UNAVAILABLE
    assert "TensorRT for RTX 1." in answer["message"]
    assert "compiled for TensorRT" in answer["message"]


@pytest.mark.parametrize(("version", "fits"), [("{major}9999", True), ("{major}0000", False), ("990000", False)])
def test_the_version_is_asked_first_and_then_the_gpu(
    native_build: Path, module: Path, tmp_path: Path, version: str, fits: bool
) -> None:
    """A stand-in of a chosen version, which ends the process if it is asked for more than that."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    refused = _model(native_build, module, "libm.so.6")["message"]
    major = refused.split("install TensorRT ")[1].split(".")[0]
    source, library = tmp_path / "stand_in.c", tmp_path / "libstand_in.so"
    source.write_text(
        f"int getInferLibVersion(void) {{ return {version.format(major=major)}; }}\n"
        "void *createInferRuntime_INTERNAL(void *logger, int version) { __builtin_trap(); }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    if fits and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU: the stand-in would be called")
    answer = _model(native_build, module, library)
    assert answer["code"] == BACKEND_UNAVAILABLE
    if fits:
        assert "needs an NVIDIA GPU" in answer["message"]
    else:
        assert "this module was compiled for" in answer["message"]
