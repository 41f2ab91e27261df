"""Bundles are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError, ManifestError
from engines.schema import MANIFEST_NAME, Manifest, Range
from engines.writer import write_bundle
from foundation.errors import ArcFlowError
from tests.runtime import small_bundle


def _content(pristine: Path) -> dict[str, Path | bytes]:
    paths = [path for path in pristine.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
    return {path.relative_to(pristine).as_posix(): path for path in paths}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_copies_files_and_takes_bytes(pristine: Path, tmp_path: Path) -> None:
    files = _content(pristine)
    files["clip.onnx"] = (pristine / "clip.onnx").read_bytes()
    written = write_bundle(tmp_path / "new" / "tiny-fp32-cpu", open_bundle(pristine).manifest, files)
    assert written.manifest == open_bundle(pristine).manifest
    assert _names(tmp_path / "new") == ["tiny-fp32-cpu"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, pristine: Path) -> None:
    again = small_bundle.build(tmp_path / "again")
    assert (again.root / MANIFEST_NAME).read_bytes() == (pristine / MANIFEST_NAME).read_bytes()


def test_replaces_the_bundle_that_stood_there(bundle: Path, pristine: Path) -> None:
    (bundle / "leftover").write_text("x")
    write_bundle(bundle, open_bundle(pristine).manifest, _content(pristine))
    assert open_bundle(bundle)
    assert _names(bundle.parent) == [bundle.name]


@pytest.mark.parametrize("path", ["../out", "/abs", "a\\b", "manifest.json", ""])
def test_a_path_that_may_not_be_is_refused(pristine: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(BundleError, match="cannot put"):
        write_bundle(tmp_path / "new", open_bundle(pristine).manifest, {**_content(pristine), path: b""})
    assert _names(tmp_path) == []


def test_a_source_that_is_missing_leaves_nothing(pristine: Path, tmp_path: Path) -> None:
    files = {**_content(pristine), "clip.onnx": tmp_path / "missing"}
    with pytest.raises(BundleError, match="cannot read"):
        write_bundle(tmp_path / "new", open_bundle(pristine).manifest, files)
    assert _names(tmp_path) == []


def test_a_manifest_that_contradicts_itself_leaves_what_was_there(bundle: Path, pristine: Path) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    broken = small_bundle.manifest(limits=small_bundle.manifest().limits.__class__(*[Range(2, 1, 4)] * 4, 8))
    with pytest.raises(ManifestError):
        write_bundle(bundle, broken, _content(pristine))
    assert (bundle / MANIFEST_NAME).read_bytes() == before
    assert _names(bundle.parent) == [bundle.name]


def test_a_folder_that_cannot_be_made(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArcFlowError, match="cannot write"):
        write_bundle(tmp_path / "file" / "new", open_bundle(pristine).manifest, _content(pristine))


def _sources(pristine: Path, folder: Path) -> dict[str, Path | bytes]:
    """Copies of the small bundle's files, as a build's work folder would hold them."""
    folder.mkdir()
    copies = {path: folder / path.replace("/", "-") for path in _content(pristine)}
    for path, copy in copies.items():
        shutil.copyfile(pristine / path, copy)
    return dict(copies)


def test_consumed_files_are_moved_and_not_copied(pristine: Path, tmp_path: Path) -> None:
    files = _sources(pristine, tmp_path / "work")
    numbers = {path: source.stat().st_ino for path, source in files.items() if isinstance(source, Path)}
    written = write_bundle(tmp_path / "tiny-fp32-cpu", small_bundle.manifest(), files, consume=files)
    assert {path: (written.root / path).stat().st_ino for path in files} == numbers
    assert _names(tmp_path / "work") == []
    assert open_bundle(written.root).manifest.files == written.manifest.files


class _StopError(Exception):
    pass


def _stop(_: Manifest) -> Manifest:
    raise _StopError


def test_consumed_files_stay_where_they_are_when_a_later_step_fails(pristine: Path, tmp_path: Path) -> None:
    files = _sources(pristine, tmp_path / "work")
    before = {path: (tmp_path / "work" / path.replace("/", "-")).read_bytes() for path in files}
    with pytest.raises(_StopError):
        write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files, finish=_stop)
    assert {path: source.read_bytes() for path, source in files.items() if isinstance(source, Path)} == before
    assert _names(tmp_path) == ["work"]
    assert write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files)


def test_a_killed_writer_loses_nothing_and_the_next_one_still_moves(pristine: Path, tmp_path: Path) -> None:
    files = _sources(pristine, tmp_path / "work")
    pid = os.fork()
    if pid == 0:
        write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files, finish=lambda _: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(_names(tmp_path / "work")) == len(files)
    numbers = {path: source.stat().st_ino for path, source in files.items() if isinstance(source, Path)}
    written = write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files)
    assert {path: (written.root / path).stat().st_ino for path in files} == numbers
    assert _names(tmp_path) == ["new", "work"]


def test_consumed_files_are_copied_where_links_cannot_be(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    files = _sources(pristine, tmp_path / "work")
    monkeypatch.setattr(os, "link", refuse)
    assert open_bundle(write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files).root)
    assert _names(tmp_path / "work") == []


def test_a_linked_source_is_copied_and_one_name_of_it_goes(pristine: Path, tmp_path: Path) -> None:
    files = _sources(pristine, tmp_path / "work")
    os.link(tmp_path / "work" / "clip.onnx", tmp_path / "second-name")
    assert open_bundle(write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files).root)
    assert (tmp_path / "second-name").is_file()


def test_a_bundle_can_be_written_again_from_its_own_files(bundle: Path) -> None:
    files = _content(bundle)
    tools = {"onnx": "another"}
    written = write_bundle(bundle, small_bundle.manifest(tools=tools), files, consume=files)
    assert open_bundle(bundle).manifest == written.manifest
    assert written.manifest.tools == tools


def test_what_is_not_to_be_consumed_stays(pristine: Path, tmp_path: Path) -> None:
    files = _sources(pristine, tmp_path / "work")
    write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=["clip.onnx"])
    left = {path for path, source in files.items() if isinstance(source, Path) and source.exists()}
    assert left == set(files) - {"clip.onnx"}


def test_finish_sees_the_digests(pristine: Path, tmp_path: Path) -> None:
    def note(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, tools={"first": manifest.files[0].sha256})

    written = write_bundle(tmp_path / "new", small_bundle.manifest(), _content(pristine), finish=note)
    assert written.manifest.tools == {"first": written.manifest.files[0].sha256}


@pytest.mark.parametrize("consume", [False, True])
def test_a_big_file_is_read_no_more_than_needed(
    pristine: Path, tmp_path: Path, consume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that go through sha256: once for a file that is taken over, twice for a copy."""
    files = _sources(pristine, tmp_path / "work")
    size = sum(source.stat().st_size for source in files.values() if isinstance(source, Path))
    hashed = _Counter()
    monkeypatch.setattr(hashlib, "sha256", hashed)
    write_bundle(tmp_path / "new", small_bundle.manifest(), files, consume=files if consume else ())
    manifest = (tmp_path / "new" / MANIFEST_NAME).stat().st_size
    assert size <= hashed.bytes <= size * (1 if consume else 2) + 4 * manifest


class _Counter:
    """Stands for ``hashlib.sha256`` and counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, data: bytes = b"") -> _Counting:
        return _Counting(self, data)


class _Counting:
    def __init__(self, counter: _Counter, data: bytes) -> None:
        self._counter, self._digest = counter, hashlib.new("sha256")
        self.update(data)

    def update(self, data: bytes) -> None:
        self._counter.bytes += len(data)
        self._digest.update(data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
