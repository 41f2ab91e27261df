"""What TensorRT says while it works: errors kept for our message, warnings counted, chatter dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_KEPT = 20
"""Errors and warnings kept of each kind; the rest is counted only."""

_NOISE = re.compile(r"catchCudaError|^\s*$")
"""Errors that follow another one wherever there is no GPU, and say nothing of their own."""

_POSITIONS = re.compile(r"^IBuilder::\w+: |Error Code \d+: |Myelin \(|\[[\w.]+:\d+: \w+\] | In \w+ at /_src/\S+")


@dataclass
class TensorRTLog:
    """What was said during one piece of work. errors, warnings: the first of each; warning_count: of all of them."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    warning_count: int = 0

    @property
    def reason(self) -> str:
        """The first error, on one line and without TensorRT's own source positions."""
        first = next((error for error in self.errors if not _NOISE.search(error)), "it gave no reason")
        return " ".join(_POSITIONS.sub("", first).split())

    def error(self, message: str) -> None:
        """Keep an error."""
        if len(self.errors) < _KEPT:
            self.errors.append(message)

    def warning(self, message: str) -> None:
        """Count a warning, and keep it if it is among the first."""
        self.warning_count += 1
        if len(self.warnings) < _KEPT:
            self.warnings.append(message)


def make_logger(trt: Any) -> Any:
    """A logger for TensorRT, which wants one for the life of the process; its ``sink`` is a TensorRTLog or None."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.sink: TensorRTLog | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.sink is None:
                return
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.sink.error(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.sink.warning(message)

    return Logger()


@contextmanager
def listening(logger: Any) -> Iterator[TensorRTLog]:
    """What ``logger`` hears inside; whoever listened before listens again afterwards."""
    before, log = logger.sink, TensorRTLog()
    logger.sink = log
    try:
        yield log
    finally:
        logger.sink = before
