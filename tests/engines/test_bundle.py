"""A bundle opens when it is exactly what its manifest says, and in no other case."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError, BundleNotFoundError, ManifestError, SchemaVersionError, TrustError
from engines.manifest import parse_manifest
from engines.schema import MANIFEST_NAME, Manifest
from engines.trust import ENVIRONMENT as KEYS
from engines.trust import require_ours
from engines.writer import write_bundle
from tests.engines.bundle_cases import CASES, FILES, Case, build_sources, prepare
from tests.engines.damages import caching
from tests.engines.link_cases import LINK_CASES
from tests.runtime.small_bundle import flip


def test_opens_and_reads_what_was_listed(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert str(opened.name) == "tiny-fp32-cpu"
    listed = {entry.path for entry in opened.manifest.files}
    assert {*listed, MANIFEST_NAME} == set(FILES)
    for path in listed:
        assert opened.read(path) == (bundle / path).read_bytes()


def test_opens_through_a_link_to_the_whole_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert open_bundle(tmp_path / "link").root == bundle.resolve()


def test_reading_what_is_not_listed_says_what_is(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no file 'other.onnx'; it has backbone.onnx"):
        open_bundle(bundle).read("other.onnx")


@pytest.mark.parametrize("path", [path for path in FILES if path != MANIFEST_NAME])
def test_a_file_changed_after_opening_is_refused_when_read(bundle: Path, path: str) -> None:
    opened = open_bundle(bundle)
    (bundle / path).write_bytes(flip((bundle / path).read_bytes(), 10))
    with pytest.raises(BundleError, match="was altered"):
        opened.read(path)


def test_a_file_replaced_by_a_link_after_opening_is_refused_when_read(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    (bundle / "clip.onnx").rename(tmp_path / "elsewhere")
    (bundle / "clip.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="symbolic link"):
        opened.read("clip.onnx")


def test_what_becomes_of_a_linked_file_is_seen_when_it_is_read(bundle: Path) -> None:
    data = (bundle / "clip.onnx").read_bytes()
    caching(bundle)
    opened, blob = open_bundle(bundle, allow_links=True), (bundle / "clip.onnx").resolve()
    assert opened.read("clip.onnx") == bytes(opened.map("clip.onnx")) == data
    blob.write_bytes(flip(data, 10))
    with pytest.raises(BundleError, match="was altered"):
        opened.map("clip.onnx")
    blob.unlink()
    with pytest.raises(BundleError, match=r"'clip\.onnx' is a symbolic link that leads nowhere"):
        opened.read("clip.onnx")


def test_no_byte_of_the_manifest_can_change_unseen(pristine: Path) -> None:
    data = (pristine / MANIFEST_NAME).read_bytes()
    for position in range(len(data)):
        with pytest.raises(ManifestError):
            parse_manifest(flip(data, position))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield build_sources(tmp_path_factory.mktemp("sources"), monkeypatch)


def test_the_table_names_every_case_once() -> None:
    every = [*CASES, *LINK_CASES]
    assert len({case.name for case in every}) == len(every) >= 60


@pytest.mark.parametrize("case", [*CASES, *LINK_CASES], ids=lambda case: case.name)
def test_what_is_good_opens_and_damage_is_refused_with_a_clear_error(
    case: Case, sources: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = prepare(case, sources, tmp_path)
    monkeypatch.setenv(KEYS, str(tmp_path / "keys"))
    if case.error is None:
        require_ours(open_bundle(root, allow_links=case.allow_links).manifest)
        return
    with pytest.raises(BundleError) as caught:
        require_ours(open_bundle(root, allow_links=case.allow_links).manifest)
    message = str(caught.value)
    assert case.error in message
    assert "\n" not in message
    assert isinstance(caught.value, TrustError) or str(root) in message


def test_an_unknown_schema_version_is_its_own_error(bundle: Path) -> None:
    data = (bundle / MANIFEST_NAME).read_bytes()
    changed = data.replace(b'"schema_version": 4', b'"schema_version": 5, "field_of_the_future": []')
    (bundle / MANIFEST_NAME).write_bytes(changed)
    with pytest.raises(SchemaVersionError, match="schema version 5, this ArcFlow reads version 4"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["nowhere", "x" * 5000, "nowhere/at/all"])
def test_a_missing_folder_is_its_own_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleNotFoundError, match="there is no bundle at"):
        open_bundle(tmp_path / name)


def test_a_file_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleNotFoundError):
        open_bundle(tmp_path / "file")


def test_the_error_says_how_to_build_it_again(bundle: Path) -> None:
    (bundle / "clip.onnx").unlink()
    with pytest.raises(BundleError, match=r"export\.build --model tiny --precision fp32 --target cpu"):
        open_bundle(bundle)


def test_an_error_keeps_its_class_when_the_folder_is_named_in_it(bundle: Path) -> None:
    manifest = parse_manifest((bundle / MANIFEST_NAME).read_bytes())
    assert isinstance(manifest, Manifest)
    shutil.rmtree(bundle / "tokenizers")
    with pytest.raises(BundleError, match=r"'tokenizers/clip.json' is missing \(2 in all\)"):
        open_bundle(bundle)


def test_a_mapping_shows_the_file_and_cannot_be_written(bundle: Path) -> None:
    opened = open_bundle(bundle)
    view = opened.map("backbone.onnx")
    assert view.readonly
    assert bytes(view) == opened.read("backbone.onnx")


def test_a_mapping_outlives_the_name_of_its_file(bundle: Path) -> None:
    data = (bundle / "clip.onnx").read_bytes()
    view = open_bundle(bundle).map("clip.onnx")
    (bundle / "clip.onnx").unlink()
    (bundle / "clip.onnx").write_bytes(b"other")
    assert bytes(view) == data


@pytest.mark.parametrize("contents", ["now", "when used"])
def test_a_file_changed_after_opening_is_not_mapped(bundle: Path, contents: Literal["now", "when used"]) -> None:
    opened = open_bundle(bundle, contents)
    (bundle / "clip.onnx").write_bytes(flip((bundle / "clip.onnx").read_bytes(), 10))
    with pytest.raises(BundleError, match="was altered"):
        opened.map("clip.onnx")
    (bundle / "clip.onnx").write_bytes(b"short")
    with pytest.raises(BundleError, match="has 5 bytes"):
        opened.map("clip.onnx")
    with pytest.raises(BundleError, match="no file 'other'"):
        opened.map("other")


def test_an_empty_file_can_be_mapped(pristine: Path, tmp_path: Path) -> None:
    files: dict[str, Path | bytes] = {path: pristine / path for path in FILES if path != MANIFEST_NAME}
    written = write_bundle(tmp_path / "new", open_bundle(pristine).manifest, {**files, "empty": b""})
    assert bytes(written.map("empty")) == b""


def test_contents_may_wait_until_they_are_used_but_nothing_else(bundle: Path) -> None:
    (bundle / "clip.onnx").write_bytes(b"")
    opened = open_bundle(bundle, contents="when used")
    with pytest.raises(BundleError, match=r"'clip\.onnx' has 0 bytes"):
        opened.read("clip.onnx")
    (bundle / "extra").write_bytes(b"")
    with pytest.raises(BundleError, match="'extra' is not in the manifest"):
        open_bundle(bundle, contents="when used")
