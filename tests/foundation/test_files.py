"""Writes happen whole or not at all; digests see content and names."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foundation.errors import ArcFlowError
from foundation.files import atomic_directory, atomic_file, sha256_file, sha256_tree


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_file(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data[:size]).hexdigest()


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_sha256_tree_is_the_content_and_nothing_else(tmp_path: Path) -> None:
    one = _tree(tmp_path / "one", {"a": "1", "b/c": "2"})
    two = _tree(tmp_path / "two", {"b/c": "2", "a": "1"})
    os.utime(two / "a", (0, 0))
    assert sha256_tree(one) == sha256_tree(two)


@pytest.mark.parametrize("files", [{"a": "1"}, {"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "12", "b/c": ""}])
def test_sha256_tree_sees_every_difference(tmp_path: Path, files: dict[str, str]) -> None:
    one = _tree(tmp_path / "one", {"a": "1", "b/c": "2"})
    assert sha256_tree(one) != sha256_tree(_tree(tmp_path / "two", files))


def test_atomic_file_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "f.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert _names(path.parent) == ["f.txt"]


def test_atomic_file_has_the_mode_of_a_plain_write(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_atomic_file_keeps_the_old_content_when_the_block_fails(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "f") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert _names(tmp_path) == ["f"]


def test_atomic_file_turns_an_os_error_into_a_clear_one(tmp_path: Path) -> None:
    with pytest.raises(ArcFlowError, match=r"cannot write .*f: No space left"), atomic_file(tmp_path / "f"):
        raise OSError(28, "No space left on device")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic_file, atomic_directory])
def test_a_path_under_a_file_is_a_clear_error(tmp_path: Path, writer: object) -> None:
    (tmp_path / "file").write_text("x")
    assert callable(writer)
    with pytest.raises(ArcFlowError, match="cannot write"), writer(tmp_path / "file" / "f"):
        pytest.fail("the block must not run")
    assert _names(tmp_path) == ["file"]


def test_atomic_directory_replaces_the_whole_folder(tmp_path: Path) -> None:
    _tree(tmp_path / "d", {"old": "1"})
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new").write_text("2")
        assert _names(tmp_path / "d") == ["old"]
    assert _names(tmp_path / "d") == ["new"]
    assert _names(tmp_path) == ["d"]
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755


def test_many_writers_of_one_folder_leave_one_of_theirs_and_nothing_else(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(20):
            with atomic_directory(tmp_path / "d") as temporary:
                (temporary / "who").write_text(f"{number} {turn}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert (tmp_path / "d" / "who").read_text().endswith(" 19")
    assert _names(tmp_path) == ["d"]


def test_atomic_directory_keeps_the_old_one_when_the_block_fails(tmp_path: Path) -> None:
    _tree(tmp_path / "d", {"old": "1"})
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new").write_text("2")
        raise RuntimeError
    assert _names(tmp_path / "d") == ["old"]
    assert _names(tmp_path) == ["d"]
