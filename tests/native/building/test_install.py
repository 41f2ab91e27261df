"""What `cmake --install` gives: a separate project builds against it by CMake and by pkg-config, wherever it is moved.

The same project builds against the folder that the Python wheel brings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.pipeline import Pipeline

CONSUMER = Path(__file__).parent / "consumer"
BIN = Path(sys.executable).parent
SYSTEM = {
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "linux-vdso.so.1",
}
"""What the library may need of the machine: the C and C++ run time, and the loader."""


def run(*command: str | Path, **environment: str) -> str:
    """The command's standard output; its whole output where it fails. It sees nothing of ArcFlow in its environment."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("ARCFLOW", "CMAKE", "LD_"))}
    base["PATH"] = f"{BIN}{os.pathsep}{base['PATH']}"
    done = subprocess.run(
        [str(part) for part in command], env={**base, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def prefix(native_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed tree, moved from the place that it was installed to."""
    first = tmp_path_factory.mktemp("install") / "first"
    run("cmake", "--install", native_tree, "--prefix", first)
    moved = first.parent / "moved elsewhere"
    first.rename(moved)
    return moved


@pytest.fixture(scope="module")
def expected() -> str:
    """What each consumer prints: the size and the FNV-1a digest of the image that the Python runtime generates."""
    image = Pipeline.open("tiny", threads=1).generate("a smiling face with sunglasses", seed=5).images[0]
    digest = 14695981039346656037
    for value in image.tobytes():
        digest = (digest ^ value) * 1099511628211 & (1 << 64) - 1
    return f"{image.shape[1]}x{image.shape[0]} {digest:016x}\n"


def build_consumer(folder: Path, *options: str) -> Path:
    run("cmake", "-S", CONSUMER, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)
    run("cmake", "--build", folder)
    return folder


def test_a_project_finds_the_package_and_its_programs_run(
    prefix: Path, expected: str, onnxruntime_library: Path, tmp_path: Path
) -> None:
    folder = build_consumer(tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    assert run(folder / "consumer_c", onnxruntime_library) == expected
    assert run(folder / "consumer_cpp", onnxruntime_library) == expected


def test_another_minor_version_is_refused(prefix: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(other LANGUAGES CXX)\nfind_package(ArcFlow 0.2 REQUIRED)\n"
    )
    with pytest.raises(AssertionError, match="0\\.1\\.0"):
        run("cmake", "-S", project, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")


def test_pkg_config_is_enough(prefix: Path, expected: str, onnxruntime_library: Path, tmp_path: Path) -> None:
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    if tool is None:
        pytest.skip("this machine has no pkg-config")
    # Out of the moved tree, whose name holds a space: some versions of pkg-config escape it, some do not.
    tree = tmp_path / "tree"
    tree.symlink_to(prefix)
    where = {"PKG_CONFIG_PATH": str(next(tree.rglob("arcflow.pc")).parent)}
    assert run(tool, "--modversion", "arcflow", **where) == "0.1.0\n"
    flags = run(tool, "--cflags", "--libs", "arcflow", **where).split()
    library = run(tool, "--variable=libdir", "arcflow", **where).strip()
    program = tmp_path / "consumer"
    run("cc", "-std=c11", CONSUMER / "consumer.c", "-o", program, *flags, f"-Wl,-rpath,{library}")
    assert run(program, onnxruntime_library) == expected


def test_the_library_needs_the_machine_s_run_time_alone(prefix: Path) -> None:
    libraries = [path for path in prefix.rglob("*.so*") if not path.is_symlink()]
    assert any(path.name.startswith("libarcflow_host_ort") for path in libraries)
    for path in libraries:
        if "tensorrt" in path.name:  # CUDA's run time and TensorRT are the user's
            continue
        needed = {
            line.split("[")[1].rstrip("]") for line in run("readelf", "-d", path).splitlines() if "(NEEDED)" in line
        }
        assert needed - {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"} <= SYSTEM, path


def test_programs_and_licences_are_installed(prefix: Path, tmp_path: Path) -> None:
    for name in ("arcflow-cli", "arcflow-serve"):
        run(prefix / "bin" / name, "--help")
    names = {path.name for path in prefix.rglob("*") if path.is_file()}
    assert {
        "arcflow.h",
        "arcflow.hpp",
        "embed.c",
        "embed.cpp",
        "LICENSE",
        "NOTICE",
        "THIRD-PARTY.md",
        "manifest.json",
    } <= names


def test_nothing_installed_names_the_place_of_the_build(prefix: Path, native_tree: Path) -> None:
    places = [str(native_tree).encode(), str(prefix.parent / "first").encode()]
    found = [
        f"{path.relative_to(prefix)}: {place.decode()}"
        for path in prefix.rglob("*")
        if path.is_file() and not path.is_symlink()
        for place in places
        if place in path.read_bytes()
    ]
    assert not found


def test_the_wheel_serves_cxx_programs_as_well(expected: str, onnxruntime_library: Path, tmp_path: Path) -> None:
    package = run(sys.executable, "-m", "runtime.native", "--cmake-dir").strip()
    folder = build_consumer(tmp_path, f"-DArcFlow_DIR={package}")
    assert run(folder / "consumer_cpp", onnxruntime_library) == expected
