"""Errors of the ``export`` package."""

from __future__ import annotations

from foundation.errors import ArcFlowError


class ExportError(ArcFlowError):
    """A network cannot be exported, or what was asked for is not available."""


class WeightsError(ExportError):
    """A weights file is missing, damaged, or lacks a tensor."""


class MergeError(ExportError):
    """An adapter does not fit its base, or merging them gives values that are not finite."""


class ParityError(ExportError):
    """An exported network does not compute what the original computes."""


class CalibrationError(ExportError):
    """A calibration is missing, damaged, or belongs to another student."""


class GateError(ExportError):
    """A quantised student's images differ too much from the student's own."""


class EngineError(ExportError):
    """A plan cannot be built: for that target, in that precision, or from that graph."""
