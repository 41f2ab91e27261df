"""The architectures that can be exported, by name; each is one module such as :mod:`export.architectures.flux`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from export.errors import ExportError

_MODULES = {"flux": "export.architectures.flux", "qwen": "export.architectures.qwen"}


def choose(name: str) -> ModuleType:
    """The module of an architecture, imported when it is asked for. Raises ExportError for an unknown one."""
    if name not in _MODULES:
        raise ExportError(f"unknown architecture {name!r}; known are {', '.join(_MODULES)}")
    return import_module(_MODULES[name])
