"""Errors of building plans."""

from __future__ import annotations

from export.errors import ExportError


class EngineError(ExportError):
    """A plan cannot be built: for that target, in that precision, or from that graph."""


class FlavourError(EngineError):
    """The flavour of TensorRT that a target needs is not installed, or is too old."""
