"""The plan as it leaves the builder: written piece by piece, hashed on the way, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import IO, Any


class PlanWriter:
    """Where the pieces of a plan go. size, in bytes, and digest, sha256, are of what was written so far.

    written: called with the size after each piece.
    """

    def __init__(self, stream: IO[bytes], written: Callable[[int], None] = lambda size: None) -> None:
        self.size = 0
        self.error: OSError | None = None
        self._stream = stream
        self._written = written
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hexadecimal sha256."""
        return self._hash.hexdigest()

    def write(self, piece: Any) -> int:
        """Write a piece; returns its length, or 0, upon which the builder gives up. ``error`` then says why."""
        view = memoryview(piece)
        try:
            self._stream.write(view)
        except OSError as error:
            self.error = error
            return 0
        self._hash.update(view)
        self.size += view.nbytes
        self._written(self.size)
        return view.nbytes


def make_stream(trt: Any, writer: PlanWriter) -> Any:
    """TensorRT's stream writer over ``writer``."""

    class Stream(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            return writer.write(data)

    return Stream()
