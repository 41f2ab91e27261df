"""The architectures that can be exported, by name: recipes in files such as :mod:`export.architectures.flux`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import ExportError

if TYPE_CHECKING:
    from export.architectures.base import Architecture


def choose(name: str) -> Architecture:
    """The architecture of that name. Raises ExportError for an unknown one."""
    from export.architectures.flux import FLUX
    from export.architectures.qwen import QWEN

    known = {each.name: each for each in (FLUX, QWEN)}
    if name not in known:
        raise ExportError(f"unknown architecture {name!r}; known are {', '.join(known)}")
    return known[name]
