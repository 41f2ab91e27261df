"""The runtime's own scenarios on the real driver: every kernel, graphs, events, memory that is exhausted.

``python -m tests.runtime.cuda.scenarios on_gpu``, which needs numpy and cuda-bindings alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from gpu.catalogue import Options
from gpu.device import need_gpu
from gpu.records import Printer

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tests.runtime.cuda.scenarios", "on_gpu")


def run(printer: Printer, options: Options) -> None:
    """Run them; what they report is kept."""
    need_gpu()
    start = time.monotonic()
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    passed = done.returncode == 0
    said = done.stdout.splitlines()[-1:] if passed else (done.stderr or done.stdout).splitlines()[-1:]
    printer(
        "scenarios of the device",
        f"{'all hold' if passed else 'NOT held'}: {said[0] if said else done.returncode}",
        passed,
        check=True,
        seconds=round(time.monotonic() - start, 2),
        report=json.loads(said[0]) if passed else None,
        trace=None if passed else done.stderr[-3000:],
    )
