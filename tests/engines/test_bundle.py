"""A bundle opens when it is exactly what its manifest says, and in no other case."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from engines.bundle import open_bundle
from engines.errors import BundleError, BundleNotFoundError, ManifestError, SchemaVersionError
from engines.manifest import MANIFEST_NAME, FileEntry, Manifest, parse_manifest, render_manifest
from engines.writer import write_bundle
from tests.runtime.small_bundle import flip

FILES = (
    "backbone.onnx",
    "clip.onnx",
    "manifest.json",
    "t5.onnx",
    "tokenizers/clip.json",
    "tokenizers/t5.json",
    "vae_decoder.onnx",
)


def _rewrite(root: Path, **changes: object) -> None:
    """Change the manifest and sign it again with its digest, as one who means harm would."""
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes())
    (root / MANIFEST_NAME).write_bytes(render_manifest(msgspec.structs.replace(manifest, **changes)))


def _entry(root: Path, path: str) -> FileEntry:
    return next(e for e in parse_manifest((root / MANIFEST_NAME).read_bytes()).files if e.path == path)


def _relist(root: Path, old: str, new: str) -> None:
    """List the file ``old`` under the path ``new``."""
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes())
    entry = msgspec.structs.replace(_entry(root, old), path=new)
    files = sorted([*(e for e in manifest.files if e.path != old), entry], key=lambda e: e.path)
    _rewrite(root, files=files)


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


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("path", FILES)
def test_a_flipped_byte_in_any_file_is_refused(bundle: Path, path: str, where: str) -> None:
    data = (bundle / path).read_bytes()
    position = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]
    (bundle / path).write_bytes(flip(data, position))
    with pytest.raises(BundleError, match=path):
        open_bundle(bundle)


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


def test_no_byte_of_the_manifest_can_change_unseen(pristine: Path) -> None:
    data = (pristine / MANIFEST_NAME).read_bytes()
    for position in range(len(data)):
        with pytest.raises(ManifestError):
            parse_manifest(flip(data, position))


def _missing(root: Path) -> None:
    (root / "t5.onnx").unlink()


def _missing_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()


def _extra(root: Path) -> None:
    (root / "note.txt").write_text("hello")


def _extra_hidden(root: Path) -> None:
    (root / "tokenizers" / ".hidden").write_text("hello")


def _extra_folder(root: Path) -> None:
    (root / "empty").mkdir()


def _symlink(root: Path) -> None:
    outside = root.parent / "outside.onnx"
    (root / "clip.onnx").rename(outside)
    (root / "clip.onnx").symlink_to(outside)


def _symlinked_folder(root: Path) -> None:
    outside = root.parent / "outside"
    (root / "tokenizers").rename(outside)
    (root / "tokenizers").symlink_to(outside)


def _symlinked_manifest(root: Path) -> None:
    outside = root.parent / "outside.json"
    (root / MANIFEST_NAME).rename(outside)
    (root / MANIFEST_NAME).symlink_to(outside)


def _hard_link(root: Path) -> None:
    os.link(root / "clip.onnx", root.parent / "second-name.onnx")


def _hard_linked_manifest(root: Path) -> None:
    os.link(root / MANIFEST_NAME, root.parent / "second-name.json")


def _fifo(root: Path) -> None:
    (root / "clip.onnx").unlink()
    os.mkfifo(root / "clip.onnx")


def _fifo_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).unlink()
    os.mkfifo(root / MANIFEST_NAME)


def _longer(root: Path) -> None:
    with (root / "clip.onnx").open("ab") as stream:
        stream.write(b"\0")


def _empty(root: Path) -> None:
    (root / "clip.onnx").write_bytes(b"")


def _folder_for_file(root: Path) -> None:
    (root / "clip.onnx").unlink()
    (root / "clip.onnx").mkdir()


def _truncated_manifest(root: Path) -> None:
    data = (root / MANIFEST_NAME).read_bytes()
    (root / MANIFEST_NAME).write_bytes(data[: len(data) // 2])


def _empty_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes(b"")


def _binary_manifest(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00\x01" * 10)


def _manifest_of_a_list(root: Path) -> None:
    (root / MANIFEST_NAME).write_bytes(b"[]")


def _huge_manifest(root: Path) -> None:
    with (root / MANIFEST_NAME).open("ab") as stream:
        stream.truncate(1 << 30)


def _unlisted_network(root: Path) -> None:
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes())
    (root / "clip.onnx").unlink()
    _rewrite(root, files=[e for e in manifest.files if e.path != "clip.onnx"])


def _parent_path(root: Path) -> None:
    (root / "clip.onnx").rename(root.parent / "clip.onnx")
    _relist(root, "clip.onnx", "../clip.onnx")


def _inner_parent_path(root: Path) -> None:
    _relist(root, "clip.onnx", "tokenizers/../clip.onnx")


def _absolute_path(root: Path) -> None:
    _relist(root, "clip.onnx", str(root / "clip.onnx"))


def _backslash_path(root: Path) -> None:
    _relist(root, "clip.onnx", "tokenizers\\clip.onnx")


def _drive_path(root: Path) -> None:
    _relist(root, "clip.onnx", "C:/clip.onnx")


def _dotted_path(root: Path) -> None:
    _relist(root, "clip.onnx", "./clip.onnx")


def _control_path(root: Path) -> None:
    _relist(root, "clip.onnx", "clip\n.onnx")


def _listed_twice(root: Path) -> None:
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes())
    _rewrite(root, files=[manifest.files[0], *manifest.files])


def _lists_itself(root: Path) -> None:
    _relist(root, "clip.onnx", MANIFEST_NAME)


def _wrong_size(root: Path) -> None:
    manifest = parse_manifest((root / MANIFEST_NAME).read_bytes())
    first = msgspec.structs.replace(manifest.files[0], size=1 << 62)
    _rewrite(root, files=[first, *manifest.files[1:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, r"'t5.onnx' is missing"),
        (_missing_manifest, r"'manifest.json' is missing"),
        (_extra, r"'note.txt' is not in the manifest"),
        (_extra_hidden, r"'tokenizers/.hidden' is not in the manifest"),
        (_extra_folder, r"folder 'empty' is not in the manifest"),
        (_symlink, r"'clip.onnx' is a symbolic link"),
        (_symlinked_folder, r"'tokenizers' is a symbolic link"),
        (_symlinked_manifest, r"'manifest.json' is a symbolic link"),
        (_hard_link, r"'clip.onnx' is a hard link"),
        (_hard_linked_manifest, r"'manifest.json' is a hard link"),
        (_fifo, r"'clip.onnx' is not a plain file"),
        (_fifo_manifest, r"'manifest.json' is not a plain file"),
        (_longer, r"'clip.onnx' has \d+ bytes, its manifest says"),
        (_empty, r"'clip.onnx' has 0 bytes"),
        (_folder_for_file, r"folder 'clip.onnx' is not in the manifest"),
        (_truncated_manifest, r"manifest.json is damaged"),
        (_empty_manifest, r"manifest.json is damaged"),
        (_binary_manifest, r"manifest.json is damaged"),
        (_manifest_of_a_list, r"manifest.json is damaged or is not a bundle's"),
        (_huge_manifest, r"more than any manifest"),
        (_unlisted_network, r"'clip' needs 'clip.onnx', which is not among its files"),
        (_parent_path, r"'\.\./clip.onnx' leaves the bundle"),
        (_inner_parent_path, r"leaves the bundle"),
        (_absolute_path, r"is absolute"),
        (_backslash_path, r"has a backslash"),
        (_drive_path, r"is absolute"),
        (_dotted_path, r"is not in its shortest form"),
        (_control_path, r"control characters"),
        (_listed_twice, r"listed twice"),
        (_lists_itself, r"lists itself"),
        (_wrong_size, r"'backbone.onnx' has \d+ bytes"),
    ],
)
def test_damage_is_refused_with_a_clear_error(bundle: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


def test_an_unknown_schema_version_is_its_own_error(bundle: Path) -> None:
    data = (bundle / MANIFEST_NAME).read_bytes()
    changed = data.replace(b'"schema_version": 2', b'"schema_version": 3, "field_of_the_future": []')
    (bundle / MANIFEST_NAME).write_bytes(changed)
    with pytest.raises(SchemaVersionError, match="schema version 3, this ArcFlow reads version 2"):
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
