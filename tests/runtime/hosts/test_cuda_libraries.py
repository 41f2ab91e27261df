"""Where CUDA's libraries are found for ONNX Runtime: its own preloading, over real folders and small real libraries.

Each case is a process of its own, for what is loaded stays loaded. The installed ONNX Runtime may be the CPU's: it is
told that it was built for CUDA, and its `preload_dlls` then does what it does in the GPU's package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.runtime.cuda import host_library

ROOT = Path(__file__).parents[3]
CUDA = (
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libnvrtc.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudart.so.13",
)
CUDNN = ("libcudnn.so.9",)

PROGRAM = """
import json, sys
if "torch" in sys.argv:
    import torch
import onnxruntime
onnxruntime.cuda_version = "13.0"
from runtime.hosts import onnx_cuda
missing = onnx_cuda._preload()
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if ".so" in line}
print(json.dumps({"package": onnxruntime.__file__, "missing": missing, "loaded": sorted(maps)}))
"""

TORCH = """
import ctypes, pathlib
from types import SimpleNamespace
version = SimpleNamespace(cuda="13.0")
for library in sorted((pathlib.Path(__file__).parents[1] / "of_torch").iterdir()):
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
"""

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the loaded files are read from /proc"),
    pytest.mark.skipif(host_library.compiler() is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries that hold nothing, under the names that CUDA's have."""
    folder = tmp_path_factory.mktemp("libraries")
    for name in (*CUDA, *CUDNN):
        command = [str(host_library.compiler()), "-shared", "-x", "c++", "/dev/null", "-o", name, f"-Wl,-soname,{name}"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


def put(libraries: Path, names: tuple[str, ...], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(libraries / name, folder)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A folder that holds the package onnxruntime and nothing else."""
    folder = tmp_path / "apart"
    folder.mkdir()
    found = find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    (folder / "onnxruntime").symlink_to(Path(found.origin).parent)
    return folder


def preloaded(*path: Path, arguments: tuple[str, ...] = ()) -> tuple[str, dict[str, list[Path]]]:
    """What is said to be missing, and of each library the folders it was loaded from; ``path`` comes first.

    The environment of the tests may hold a library of CUDA's too: that is left out of the folders.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=environment, cwd=path[0], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert Path(said["package"]).parents[1] == path[0]
    loaded = [Path(one) for one in said["loaded"] if not one.startswith(sysconfig.get_path("purelib"))]
    return said["missing"], {name: [one.parent for one in loaded if one.name == name] for name in (*CUDA, *CUDNN)}


def test_wheels_in_another_folder_than_onnxruntime(libraries: Path, apart: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels" / "nvidia"
    put(libraries, CUDA, wheels / "cu13" / "lib")
    put(libraries, CUDNN, wheels / "cudnn" / "lib")
    missing, loaded = preloaded(apart, wheels.parent)
    assert missing == ""
    assert loaded.pop(CUDNN[0]) == [wheels / "cudnn" / "lib"]
    assert loaded == {name: [wheels / "cu13" / "lib"] for name in CUDA}


def test_wheels_in_two_folders(libraries: Path, apart: Path, tmp_path: Path) -> None:
    """``nvidia`` is a namespace: what one folder lacks another may have."""
    put(libraries, CUDA, tmp_path / "one" / "nvidia" / "cu13" / "lib")
    put(libraries, CUDNN, tmp_path / "two" / "nvidia" / "cudnn" / "lib")
    missing, loaded = preloaded(apart, tmp_path / "one", tmp_path / "two")
    assert missing == ""
    assert loaded[CUDNN[0]] == [tmp_path / "two" / "nvidia" / "cudnn" / "lib"]


def test_wheels_of_cuda_12_have_a_folder_each(libraries: Path, apart: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels" / "nvidia"
    for name in CUDA:
        folder = wheels / name.removeprefix("lib").split("Lt")[0].split(".")[0] / "lib"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(libraries / name, folder)
    assert preloaded(apart, wheels.parent)[0] == ""


def test_what_no_folder_has_is_named(libraries: Path, apart: Path, tmp_path: Path) -> None:
    put(
        libraries, tuple(name for name in CUDA if "curand" not in name), tmp_path / "wheels" / "nvidia" / "cu13" / "lib"
    )
    missing, loaded = preloaded(apart, tmp_path / "wheels")
    assert missing == "libcurand.so.10"
    assert loaded["libcublas.so.13"]


def test_beside_onnxruntime_as_ever(libraries: Path, apart: Path) -> None:
    put(libraries, CUDA, apart / "nvidia" / "cu13" / "lib")
    put(libraries, CUDNN, apart / "nvidia" / "cudnn" / "lib")
    missing, loaded = preloaded(apart)
    assert missing == ""
    assert loaded[CUDNN[0]] == [apart / "nvidia" / "cudnn" / "lib"]


@pytest.mark.parametrize("imported", [True, False])
def test_what_torch_has_loaded_is_not_loaded_twice(
    libraries: Path, apart: Path, tmp_path: Path, imported: bool
) -> None:
    wheels = tmp_path / "wheels" / "nvidia"
    put(libraries, CUDA, wheels / "cu13" / "lib")
    put(libraries, CUDNN, wheels / "cudnn" / "lib")
    packages = tmp_path / "packages"
    put(libraries, (*CUDA, *CUDNN), packages / "of_torch")
    (packages / "torch" / "lib").mkdir(parents=True)
    (packages / "torch" / "__init__.py").write_text(TORCH)
    missing, loaded = preloaded(apart, wheels.parent, packages, arguments=("torch",) if imported else ())
    assert missing == ""
    for name in CUDA:
        assert loaded[name] == [packages / "of_torch" if imported else wheels / "cu13" / "lib"]


def test_torch_for_another_cuda_is_passed_over(libraries: Path, apart: Path, tmp_path: Path) -> None:
    put(libraries, CUDA, tmp_path / "wheels" / "nvidia" / "cu13" / "lib")
    packages = tmp_path / "packages"
    (packages / "torch" / "lib").mkdir(parents=True)
    (packages / "of_torch").mkdir()
    (packages / "torch" / "__init__.py").write_text(TORCH.replace("13.0", "12.8"))
    missing, loaded = preloaded(apart, tmp_path / "wheels", packages, arguments=("torch",))
    assert missing == ""
    assert loaded["libcublas.so.13"] == [tmp_path / "wheels" / "nvidia" / "cu13" / "lib"]
