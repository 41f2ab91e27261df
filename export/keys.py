"""What a stage's result is known by: a digest of all that it was made from, this code included."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from foundation.files import sha256_file

_SHOWN = 16
"""Digits of a key that a folder is named by."""


def key_of(facts: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of ``facts`` (plain JSON data) and of the code that makes results of them."""
    text = json.dumps({**facts, "code": code_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stage_folder(workdir: Path, stage: str, key: str) -> Path:
    """Where the result of a stage with that key lies."""
    return workdir / f"{stage}-{key[:_SHOWN]}"


@cache
def code_digest() -> str:
    """Digest of the code that stages run: all of ``export``, and the students of ``arcflow``."""
    root = Path(__file__).parent
    code = [*sorted(root.rglob("*.py")), *sorted((root.parent / "arcflow").glob("*.py"))]
    return hashlib.sha256("".join(sha256_file(path) for path in code).encode()).hexdigest()
