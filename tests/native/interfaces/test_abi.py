"""The C interface only grows: what a release recorded in ``tests/abi`` is still where it was.

When this fails, a program that was built against the released header would read the wrong bytes: put back what was
there and append instead. With a release, after something was appended, record it:
``python -m tests.abi.layout --record``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.abi.layout import HEADER, RELEASE, Layout, differences, exported_symbols, read_layout


@pytest.fixture(scope="module")
def header() -> str:
    return HEADER.read_text()


@pytest.fixture(scope="module")
def released() -> Layout:
    layout: Layout = json.loads(RELEASE.read_text())
    return layout


def test_nothing_released_has_changed(header: str, released: Layout) -> None:
    found = differences(released, read_layout(header))
    assert not found, "\n".join([*found, str(__doc__)])


@pytest.mark.parametrize("compiler", ["c++", "clang", "clang++"])
def test_compilers_and_languages_agree(header: str, compiler: str) -> None:
    found = shutil.which(compiler) or shutil.which(f"{compiler}-14")
    if found is None:
        pytest.skip(f"{compiler} is not installed")
    assert read_layout(header, found, "c++" if compiler.endswith("++") else "c") == read_layout(header)


def test_all_of_the_interface_is_recorded(released: Layout) -> None:
    assert "session_generate" in released["structs"]["ArcflowApi"]["fields"]
    for name, struct in released["structs"].items():
        if name != "ArcflowRange":
            assert next(iter(struct["fields"])) == "struct_size", name
    assert set(released["enums"]) == {"ArcflowCode", "ArcflowLogLevel"}
    assert set(released["functions"]) == {"ArcflowLogger", "ArcflowOnStep", "ArcflowOnPreview", "ArcflowOnWarning"}


def test_one_symbol_is_exported(native_library: Path) -> None:
    assert exported_symbols(native_library) == ["arcflow_get_api"]


def test_a_host_exports_one_symbol(native_tree: Path) -> None:
    hosts = list((native_tree / "lib" / "arcflow").glob("libarcflow_host_*.so"))
    assert hosts
    for host in hosts:
        assert exported_symbols(host) == ["arcflow_host_get_api"]


CHANGES = [
    ("  ARCFLOW_BUNDLE_REJECTED = 2, ", "  ARCFLOW_BUNDLE_REJECTED = 9, ", "ARCFLOW_BUNDLE_REJECTED was 2 and is 9"),
    ("  ARCFLOW_LOG_INFO = 1,\n", "", "ARCFLOW_LOG_INFO was 1 and is gone"),
    ("  uint32_t threads; ", "  uint64_t threads; ", "ArcflowModelOptions, field 6"),
    ("  const char* precision; ", "  /* precision */", "ArcflowModelOptions, field 2"),
    ("  void* logger_user;\n", "  void* context_user;\n", "ArcflowContextOptions, field 2"),
    ("  uint32_t min, opt, max;\n", "  uint32_t min, opt, max, step;\n", "ArcflowRange has no struct_size"),
    (
        "  void(ARCFLOW_CALL* cancel_request)(ArcflowCancel* cancel);\n",
        "",
        "ArcflowApi, field",
    ),
    (
        "(ARCFLOW_CALL* verify_bundle)(const char* folder)",
        "(ARCFLOW_CALL* verify_bundle)(const char* folder, int deep)",
        "ArcflowApi, field",
    ),
    ("(ARCFLOW_CALL* ArcflowOnWarning)(void* user,", "(ARCFLOW_CALL* ArcflowOnWarning)(", "ArcflowOnWarning was"),
    ("#define ARCFLOW_API_VERSION 1u", "#define ARCFLOW_API_VERSION 2u", "ARCFLOW_API_VERSION was 1 and is 2"),
]


@pytest.mark.parametrize(("old", "new", "message"), CHANGES)
def test_changes_are_found(header: str, released: Layout, old: str, new: str, message: str) -> None:
    assert header.count(old) == 1
    found = differences(released, read_layout(header.replace(old, new)))
    assert any(line.startswith(message) for line in found), found


APPENDED = [
    ("  void* stream; ", "  void* stream; uint64_t more; "),
    ("  ARCFLOW_LOG_ERROR = 3\n", "  ARCFLOW_LOG_ERROR = 3,\n  ARCFLOW_LOG_FATAL = 4\n"),
    ("\n} ArcflowApi;", "\n  void(ARCFLOW_CALL* more)(void);\n} ArcflowApi;"),
]


@pytest.mark.parametrize(("old", "new"), APPENDED)
def test_appending_is_allowed(header: str, released: Layout, old: str, new: str) -> None:
    assert header.count(old) == 1
    assert differences(released, read_layout(header.replace(old, new))) == []


def test_a_field_in_the_padding_is_not_an_appended_one(header: str) -> None:
    small = header.replace("  void* stream; ", "  void* stream; uint32_t flags; ")
    grown = small.replace("uint32_t flags; ", "uint32_t flags; uint32_t more; ")
    found = differences(read_layout(small), read_layout(grown))
    assert found == ["ArcflowSessionOptions.more lies in the padding of the released struct: put an unused field there"]
