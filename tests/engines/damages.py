"""What can be done to a bundle: to its files, to its manifest, and to the key beside it (``keys/plans.key``)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from engines.schema import MANIFEST_NAME
from tests.runtime.small_bundle import flip

Damage = Callable[[Path], object]
Document = dict[str, Any]


def sign(document: Document) -> bytes:
    """A manifest with a fitting digest of itself, as one who means harm would write it; in the document's order."""
    blank = json.dumps({**document, "digest": ""}, indent=2).encode()
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(b'"digest": ""', f'"digest": "{digest}"'.encode(), 1)


def edit(root: Path, change: Callable[[Document], object]) -> None:
    """Change the manifest's document and sign it again."""
    document = json.loads((root / MANIFEST_NAME).read_bytes())
    change(document)
    (root / MANIFEST_NAME).write_bytes(sign(document))


def setting(place: str, value: object) -> Damage:
    """Set the field at ``place`` ("files.0.size"; a place that ends with "-" removes it)."""

    def change(document: Document) -> None:
        *path, last = place.removesuffix("-").split(".")
        inner: Any = document
        for key in path:
            inner = inner[int(key) if isinstance(inner, list) else key]
        if place.endswith("-"):
            del inner[last]
        else:
            inner[int(last) if isinstance(inner, list) else last] = value

    return lambda root: edit(root, change)


def together(*damages: Damage) -> Damage:
    """One damage after the other."""

    def damage(root: Path) -> None:
        for part in damages:
            part(root)

    return damage


def raw(change: bytes | Callable[[bytes], bytes]) -> Damage:
    """Put other bytes in the manifest's place."""

    def damage(root: Path) -> None:
        path = root / MANIFEST_NAME
        path.write_bytes(change if isinstance(change, bytes) else change(path.read_bytes()))

    return damage


def replacing(old: bytes, new: bytes) -> Damage:
    """Replace bytes of the manifest, where they stand first."""
    return raw(lambda data: data.replace(old, new, 1))


def relisting(old: str, new: str) -> Damage:
    """List the file ``old`` under the path ``new``."""

    def change(document: Document) -> None:
        for entry in document["files"]:
            entry["path"] = new if entry["path"] == old else entry["path"]
        document["files"].sort(key=lambda entry: entry["path"])

    return lambda root: edit(root, change)


def flipping(path: str, where: str) -> Damage:
    def damage(root: Path) -> None:
        data = (root / path).read_bytes()
        (root / path).write_bytes(flip(data, {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]))

    return damage


def cached(source: Path, hub: Path) -> Path:
    """A copy of the bundle ``source`` as ``hub`` caches a repository that has it in a folder; gives that folder."""
    repository = hub / "models--arcflow--student"
    root = repository / "snapshots" / ("5e" * 20) / source.name
    shutil.copytree(source, root)
    caching(root, repository / "blobs")
    return root


def moving_outside(path: str) -> Damage:
    """Put a link to what lies at ``path`` in its place."""

    def damage(root: Path) -> None:
        outside = root.parent / f"outside-{Path(path).name}"
        (root / path).rename(outside)
        (root / path).symlink_to(outside)

    return damage


def caching(root: Path, blobs: Path | None = None) -> None:
    """As Hugging Face's hub caches files: each is a relative link to ``blobs/SHA256`` (default: beside ``root``)."""
    blobs = blobs or root.parent / "blobs"
    blobs.mkdir()
    for file in [path for path in root.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))


def making(path: str, content: bytes | None) -> Damage:
    """Write a file; None: make a folder."""

    def damage(root: Path) -> None:
        if content is None:
            (root / path).mkdir(parents=True)
        else:
            (root / path).write_bytes(content)

    return damage


def cutting(path: str, size: int) -> Damage:
    """Cut a file to ``size`` bytes, or stretch it."""
    return lambda root: os.truncate(root / path, size)


def removing(path: str) -> Damage:
    return lambda root: (root / path).unlink()


def placing(path: str, make: Callable[[Path], object]) -> Damage:
    """Put something in the place of a file."""
    return together(removing(path), lambda root: make(root / path))


def a_socket(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # A socket's path may not be long.
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def unlist_clip(root: Path) -> None:
    (root / "clip.onnx").unlink()
    edit(root, lambda d: d.update(files=[e for e in d["files"] if e["path"] != "clip.onnx"]))


def reversing(*fields: str) -> Damage:
    def change(document: Document) -> None:
        for field in fields:
            document[field] = dict(reversed(document[field].items()))

    return lambda root: edit(root, change)


def list_twice(document: Document) -> None:
    document["files"].insert(0, document["files"][0])


def keys_of(root: Path) -> Path:
    return root.parent / "keys"


def key_mode(mode: int) -> Damage:
    return lambda root: (keys_of(root) / "plans.key").chmod(mode)


def key_of(content: bytes) -> Damage:
    return lambda root: (keys_of(root) / "plans.key").write_bytes(content)


def link_key(root: Path) -> None:
    (keys_of(root) / "plans.key").rename(root.parent / "elsewhere")
    (keys_of(root) / "plans.key").symlink_to(root.parent / "elsewhere")


def key_as_fifo(root: Path) -> None:
    (keys_of(root) / "plans.key").unlink()
    os.mkfifo(keys_of(root) / "plans.key", 0o600)


def keys_as_file(root: Path) -> None:
    shutil.rmtree(keys_of(root))
    keys_of(root).write_bytes(b"")


def swap_plans(root: Path) -> None:
    """Exchange two plans, in the manifest as well: every digest fits, the seal does not."""
    (root / "clip.plan").rename(root / "kept")
    (root / "t5.plan").rename(root / "clip.plan")
    (root / "kept").rename(root / "t5.plan")

    def change(document: Document) -> None:
        clip, t5 = ({e["path"]: e for e in document["files"]}[name] for name in ("clip.plan", "t5.plan"))
        clip["sha256"], t5["sha256"] = t5["sha256"], clip["sha256"]
        clip["size"], t5["size"] = t5["size"], clip["size"]

    edit(root, change)
