"""The one error of the module. It carries the code of the C interface."""

from __future__ import annotations

INVALID_ARGUMENT = 1
BUNDLE_REJECTED = 2
BACKEND_UNAVAILABLE = 3
OUT_OF_MEMORY = 4
CANCELLED = 5
DEADLINE_EXCEEDED = 6
INTERNAL = 7


class NativeError(RuntimeError):
    """A call of the library failed; ``code`` is one of this module's numbers (``ArcflowCode`` in ``arcflow.h``)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
