"""How a bundle's folder is called: ``<model>-<precision>-<target>``, for instance ``tiny-fp32-cpu``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"(?P<model>[a-z0-9][a-z0-9._-]*)-(?P<precision>[a-z0-9]+)-(?P<target>[a-z0-9_]+)")


@dataclass(frozen=True, order=True)
class BundleName:
    """Model, precision and target of a bundle; ``str()`` gives the folder's name."""

    model: str
    precision: str
    target: str

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{self.target}"


def parse_name(folder: str) -> BundleName | None:
    """The parts of a bundle folder's name, or None where it is not one. The model alone may hold dashes."""
    match = _NAME.fullmatch(folder)
    return BundleName(**match.groupdict()) if match else None


def rebuild_hint(folder: str) -> str:
    """The command that makes the bundle of that folder name anew, as the end of an error message."""
    name = parse_name(folder)
    if name is None:
        return "build it again with: python -m export.build"
    return f"run: python -m export.build --model {name.model} --precision {name.precision} --target {name.target}"
