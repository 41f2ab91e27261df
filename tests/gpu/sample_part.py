"""A part for tests: does what its mode says."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from gpu.catalogue import Options
from gpu.records import Printer, SkipPartError, guarded


def run(printer: Printer, options: Options) -> None:
    """Says one figure, then goes on as it is told."""
    (mode,) = options.modes or ("well",)
    if mode == "skip":
        raise SkipPartError("nothing to measure with")
    printer("speed", "3 m/s", True, metres=3.0, odd=float("nan"))
    print("chatter of some library")
    if mode == "piece":
        guarded(printer, "a piece", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
        printer("another", "4 m/s")
    if mode == "wrong":
        printer("right?", "no", False, check=True)
    if mode == "aim":
        printer("fast enough?", "no", False)
    if mode == "raise":
        raise ValueError("broken\nin two lines")
    if mode == "die":
        os.abort()
    if mode == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        printer("child", str(child.pid))
        time.sleep(60)
