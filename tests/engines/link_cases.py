"""Bundles with links, opened where these are allowed: what is then followed, and what is still rejected, and how."""

from __future__ import annotations

import os
from pathlib import Path

from engines.schema import MANIFEST_NAME
from tests.engines.bundle_cases import Case
from tests.engines.damages import (
    Damage,
    caching,
    flipping,
    link_key,
    moving_outside,
    placing,
    relisting,
    together,
)


def _linking(path: str, target: str) -> Damage:
    return placing(path, lambda place: place.symlink_to(target))


def _naming_twice(path: str) -> Damage:
    return lambda root: os.link(root / path, root.parent / "second")


def _adding(root: Path) -> None:
    (root / "more").symlink_to("t5.onnx")


_NO_FILE = (
    "is a symbolic link that leads to no plain file: copy the bundle with cp -rL and use the copy, or run: python"
)

LINK_CASES = (
    Case("a cache of plans, links allowed", caching, None, "plans", allow_links=True),
    Case("linked key, links allowed", together(caching, link_key), "plans.key: Too many levels", "plans", True),
    *(
        Case(f"{name}, links allowed", damage, error, allow_links=True)
        for name, damage, error in (
            ("a cache", caching, None),
            ("an absolute link", moving_outside("clip.onnx"), None),
            ("linked manifest", moving_outside(MANIFEST_NAME), None),
            ("hard link", _naming_twice("clip.onnx"), None),
            ("hard linked manifest", _naming_twice(MANIFEST_NAME), None),
            (
                "to nothing",
                _linking("t5.onnx", "no"),
                "is a symbolic link that leads nowhere: fetch the bundle again, or",
            ),
            ("manifest to nothing", _linking(MANIFEST_NAME, "no"), "'manifest.json' is a symbolic link that leads now"),
            ("a loop", _linking("t5.onnx", "t5.onnx"), "cannot read 't5.onnx': Too many levels of symbolic links; run"),
            ("to a folder", _linking("t5.onnx", "tokenizers"), f"'t5.onnx' {_NO_FILE}"),
            ("manifest to a folder", _linking(MANIFEST_NAME, "."), f"'manifest.json' {_NO_FILE}"),
            ("to a device", _linking("t5.onnx", "/dev/zero"), f"'t5.onnx' {_NO_FILE}"),
            ("a linked folder", moving_outside("tokenizers"), f"'tokenizers' {_NO_FILE}"),
            ("to another file", _linking("clip.onnx", "t5.onnx"), "'clip.onnx' has "),
            (
                "to an altered file",
                together(flipping("t5.onnx", "last"), moving_outside("t5.onnx")),
                "was altered: its",
            ),
            ("one too many", together(caching, _adding), "the file 'more' is not in the manifest"),
            ("a fifo", placing("clip.onnx", os.mkfifo), "'clip.onnx' is not a plain file"),
            ("a path outside", relisting("clip.onnx", "../clip.onnx"), "'../clip.onnx' leaves the bundle"),
            ("an absolute path", relisting("clip.onnx", "/etc/passwd"), "'/etc/passwd' is absolute"),
        )
    ),
)
