"""What a stage's result is known by: a digest of all that it was made from, the code that made it included."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_OURS = re.compile(r"(?:export|arcflow)(?:\.\w+)+\Z")
"""Names of modules whose code has a say in results, in imports and in strings that are imported by name."""

_SHOWN = 16
"""Digits of a key that a folder is named by."""


def key_of(facts: Mapping[str, Any], maker: str) -> str:
    """Hexadecimal sha256 of ``facts`` (plain JSON data) and of the code of ``maker``, the module that makes results."""
    text = json.dumps({**facts, "code": code_digest(maker)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(tools: Iterable[str]) -> dict[str, str]:
    """Of packages by name."""
    return {name: version(name) for name in tools}


def stage_folder(workdir: Path, stage: str, key: str) -> Path:
    """Where the result of a stage with that key lies."""
    return workdir / f"{stage}-{key[:_SHOWN]}"


@cache
def code_digest(maker: str, root: Path = _ROOT) -> str:
    """Digest of a module and of all modules of ``export`` and ``arcflow`` that it imports, however far.

    Comments, docstrings and layout do not count. root: the folder that holds the packages.
    """
    trees: dict[str, str] = {}
    waiting = [maker]
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if path is None or name in trees:
            continue
        tree = ast.parse(path.read_bytes())
        _drop_docstrings(tree)
        trees[name] = ast.dump(tree)
        waiting += _named(tree)
    return hashlib.sha256(repr(sorted(trees.items())).encode()).hexdigest()


def _file_of(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _named(tree: ast.Module) -> Iterator[str]:
    """Everything in the code that may be the name of a module of ours."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                found = [module, *(f"{module}.{alias.name}" for alias in names)]
            case ast.Constant(value=str(text)):
                found = [text]
            case _:
                continue
        yield from (name for name in found if _OURS.match(name) or name in ("export", "arcflow"))


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Of a name too: a string that stands alone is no code.
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]


def _is_text(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
