"""Errors of building plans."""

from __future__ import annotations

from engines.errors import FlavourError as FlavourError
from export.errors import ExportError


class EngineError(ExportError):
    """A plan cannot be built: for that target, in that precision, or from that graph."""
