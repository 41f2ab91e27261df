"""Bundles are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError, ManifestError
from engines.manifest import MANIFEST_NAME, Range
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
