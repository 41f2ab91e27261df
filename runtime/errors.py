"""Errors of the ``runtime`` package."""

from __future__ import annotations

from foundation.errors import ArcFlowError


class RequestError(ArcFlowError):
    """A request asks for something that the bundle cannot do; the message says what it can."""


class BackendError(ArcFlowError):
    """A network cannot be loaded or run, or its outputs are not what the manifest promises."""
