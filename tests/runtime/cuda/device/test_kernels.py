"""The kernels' code: compiled for every GPU that is supported, cached, and made again where what is cached is wrong."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.cuda.device import kernels, nvrtc
from runtime.cuda.device.launch import NAMES
from runtime.cuda.errors import DeviceError
from tests.runtime.cuda.host_library import BUILD

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
_EM_CUDA = 190


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_machine_code_for_every_gpu(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three seconds each: cached in build/ for the next run, by the digest of all that goes in.
    monkeypatch.setenv(kernels.ENVIRONMENT, str(BUILD / "cache"))
    image = kernels.kernel_image(capability)
    assert image.startswith(b"\x7fELF")
    assert struct.unpack_from("<H", image, 18)[0] == _EM_CUDA
    for name in NAMES:
        assert b"\0.text." + name.encode() + b"\0" in image


def test_a_gpu_newer_than_the_compiler_gets_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    image = nvrtc.compile_image("k.cu", b'extern "C" __global__ void k(float* x) { x[0] = 1; }', {}, 999)
    newest = max(nvrtc.compiler()[0].nvrtcGetSupportedArchs()[1])
    assert f".target sm_{newest}".encode() in image
    assert b".entry k(" in image


def test_a_gpu_that_is_too_old() -> None:
    with pytest.raises(DeviceError, match=r"compute capability 6\.1 is too old for NVRTC, which begins at \d"):
        nvrtc.compile_image("k.cu", b"", {}, 61)


def test_no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"compiled with NVRTC, and it is not there.*pip install 'arcflow\[cuda\]'"):
        nvrtc.compiler()


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc as bindings

    def missing() -> None:
        raise RuntimeError("libnvrtc.so.13 was not found")

    monkeypatch.setattr(bindings, "nvrtcVersion", missing)
    with pytest.raises(DeviceError, match=r"libnvrtc\.so\.13 was not found.*pip install 'arcflow\[cuda\]'"):
        nvrtc.compiler()


def test_source_that_does_not_compile() -> None:
    with pytest.raises(DeviceError, match=r"cannot compile the kernels for sm_90: k\.cu\(1\): error"):
        nvrtc.compile_image("k.cu", b"int f( {", {}, 90)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The capabilities that were compiled for; the code is b"code of 90 1"."""
    made: list[int] = []

    def compile_image(name: str, source: bytes, headers: dict[str, bytes], capability: int) -> bytes:
        assert name == "arcflow_kernels.cu"
        assert set(headers) == set(kernels.HEADERS)
        made.append(capability)
        return f"code of {capability} {len(made)}".encode()

    monkeypatch.setattr(nvrtc, "compile_image", compile_image)
    monkeypatch.setattr(nvrtc, "compiler", lambda: (None, (13, 0)))
    monkeypatch.setenv(kernels.ENVIRONMENT, str(tmp_path / "cache"))
    return made


def test_code_is_compiled_once(compiled: list[int], tmp_path: Path) -> None:
    assert kernels.kernel_image(90) == kernels.kernel_image(90) == b"code of 90 1"
    assert kernels.kernel_image(120) == b"code of 120 2"
    assert compiled == [90, 120]
    folder = tmp_path / "cache" / "kernels"
    assert sorted(path.name[:5] for path in folder.iterdir()) == ["sm120", "sm90-"]
    assert folder.stat().st_mode & 0o077 == 0


def test_another_compiler_or_source_is_compiled_anew(compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.kernel_image(90)
    monkeypatch.setattr(nvrtc, "compiler", lambda: (None, (13, 5)))
    kernels.kernel_image(90)
    source, headers = kernels.sources()
    monkeypatch.setattr(kernels, "sources", lambda: (source + b"\n", headers))
    kernels.kernel_image(90)
    changed = {name: text + b"\n" * (name == "core/numerics/formula.hpp") for name, text in headers.items()}
    monkeypatch.setattr(kernels, "sources", lambda: (source, changed))
    kernels.kernel_image(90)
    assert compiled == [90] * 4


def test_code_of_an_edited_source_lies_beside_the_old(
    compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One GPU may have several entries, so an entry is found by its path and not by the GPU's number alone."""
    folder = tmp_path / "cache" / "kernels"
    kernels.kernel_image(90)
    source, headers = kernels.sources()
    (before,) = folder.iterdir()
    monkeypatch.setattr(kernels, "sources", lambda: (source + b"\n", headers))
    assert kernels.kernel_image(90) == b"code of 90 2"
    (after,) = set(folder.iterdir()) - {before}
    assert before.read_bytes().endswith(b"code of 90 1") and after.read_bytes().endswith(b"code of 90 2")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:-1] + b"X", lambda data: b"", lambda data: data[:32]],
    ids=["truncated", "flipped", "empty", "no code"],
)
def test_damaged_code_is_made_again(compiled: list[int], tmp_path: Path, damage: Any) -> None:
    kernels.kernel_image(90)
    (path,) = (tmp_path / "cache" / "kernels").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kernels.kernel_image(90) == b"code of 90 2"
    assert kernels.kernel_image(90) == b"code of 90 2"


@pytest.mark.parametrize("which", ["folder", "file"])
def test_code_that_others_could_have_written_is_not_run(compiled: list[int], tmp_path: Path, which: str) -> None:
    kernels.kernel_image(90)
    folder = tmp_path / "cache" / "kernels"
    (folder if which == "folder" else next(folder.iterdir())).chmod(0o777)
    assert kernels.kernel_image(90) == b"code of 90 2"


def test_without_a_compiler_code_that_lies_there_is_taken(compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where it was compiled elsewhere and sent; of the same source and GPU alone."""

    def absent() -> None:
        raise DeviceError("no NVRTC")

    kernels.kernel_image(90)
    monkeypatch.setattr(nvrtc, "compiler", absent)
    assert kernels.kernel_image(90) and len(compiled) == 1
    with pytest.raises(DeviceError, match="no NVRTC"):
        kernels.kernel_image(89)
    with pytest.raises(DeviceError, match="no NVRTC"):
        kernels.cached_image("other.cu", b"other", {}, 90)


def test_it_works_without_a_cache(compiled: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(kernels.ENVIRONMENT, "")
    assert kernels.cache_folder() is None
    kernels.kernel_image(90)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(kernels.ENVIRONMENT, str(tmp_path / "file"))
    assert kernels.kernel_image(90) == b"code of 90 2"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kernels.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert kernels.cache_folder() == Path("/somewhere/arcflow/kernels")


def test_an_installation_without_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "NATIVE", tmp_path)
    with pytest.raises(DeviceError, match="kernels' source is not in this installation"):
        kernels.kernel_image(90)


def test_the_package_carries_the_source() -> None:
    """What NVRTC reads at the user's is listed as package data."""
    import tomllib
    from fnmatch import fnmatch

    settings = tomllib.loads((kernels.NATIVE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["runtime.native"]
    assert (kernels.NATIVE / "__init__.py").exists()
    for name in (kernels.SOURCE, *kernels.HEADERS):
        assert any(fnmatch(name, pattern) for pattern in patterns), name
        assert os.access(kernels.NATIVE / name, os.R_OK)
