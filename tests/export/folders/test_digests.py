"""Remembered digests: those of foundation, and read again only where something changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.folders import digests
from export.folders.digests import digest_tree
from foundation.files import sha256_tree

AN_HOUR = 3600 * 10**9


def age(path: Path, by: int = AN_HOUR) -> None:
    changed = path.stat().st_mtime_ns - by
    os.utime(path, ns=(changed, changed))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files an hour old, one of them a link as in the hub's cache."""
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"blob")
    (folder / "a").write_bytes(b"a" * 100)
    (folder / "sub" / "b").write_bytes(b"")
    (folder / "sub" / "link").symlink_to(tmp_path / "blob")
    for path in (folder / "a", folder / "sub" / "b", tmp_path / "blob"):
        age(path)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names, right = list[str](), digests._read

    def count(path: Path, report: object) -> str:
        names.append(path.name)
        return right(path, report)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "_read", count)
    return names


def test_it_is_foundations_digest_and_is_remembered(tree: Path, tmp_path: Path, read: list[str]) -> None:
    cache, seen = tmp_path / "new" / "cache.json", list[tuple[int, int]]()
    truth = sha256_tree(tree)
    assert digest_tree(tree, cache, lambda *done: seen.append(done)) == truth
    assert read == ["a", "b", "link"]
    assert seen[-1] == (104, 104)
    assert seen == sorted(seen)
    assert digest_tree(tree, cache) == truth
    assert len(read) == 3


def test_what_changed_is_read_again(tree: Path, tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "cache.json"
    digest_tree(tree, cache)
    read.clear()
    (tmp_path / "blob").write_bytes(b"BLOB")  # behind the link
    age(tmp_path / "blob", AN_HOUR // 2)
    replaced = tree / "replaced"
    replaced.write_bytes(b"b" * 100)
    stamp = (tree / "a").stat().st_mtime_ns
    os.utime(replaced, ns=(stamp, stamp))
    replaced.rename(tree / "a")  # same size and time, another inode
    assert digest_tree(tree, cache) == sha256_tree(tree)
    assert read == ["a", "link"]


def test_what_is_still_fresh_is_not_remembered(tree: Path, tmp_path: Path, read: list[str]) -> None:
    cache = tmp_path / "cache.json"
    (tree / "a").write_bytes(b"x" * 100)
    digest_tree(tree, cache)
    read.clear()
    assert digest_tree(tree, cache) == sha256_tree(tree)
    assert read == ["a"]


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', '{"x": [1, 2]}'])
def test_a_damaged_cache_only_costs_time(tree: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(text)
    assert digest_tree(tree, cache) == sha256_tree(tree)
    assert len(cache.read_text()) > 100


def test_a_run_that_was_stopped_keeps_what_it_read(tree: Path, tmp_path: Path, read: list[str]) -> None:
    def stop(done: int, _: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    cache = tmp_path / "cache.json"
    with pytest.raises(KeyboardInterrupt):
        digest_tree(tree, cache, stop)
    read.clear()
    assert digest_tree(tree, cache) == sha256_tree(tree)
    assert read == ["link"]


def test_a_cache_that_cannot_be_written_only_costs_time(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert digest_tree(tree, tmp_path / "file" / "cache.json") == sha256_tree(tree)
