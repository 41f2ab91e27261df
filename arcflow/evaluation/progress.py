"""How far an evaluation is, for a person: one line on standard error, drawn again as it grows."""

from __future__ import annotations

import sys
import time


class Progress:
    """Called with (what is being done, done, total), it says that and how long the rest of it takes."""

    def __init__(self) -> None:
        self._name, self._first, self._start = "", 0, 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if name != self._name:
            self._name, self._first, self._start = name, done, now
        left = ""
        if self._first < done < total:
            left = f", {(now - self._start) / (done - self._first) * (total - done):.0f} s left"
        sys.stderr.write(f"\r{f'{name}: {done}/{total} images{left}':<60}" + ("" if done < total else "\n"))
        sys.stderr.flush()
