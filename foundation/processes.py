"""How the command of one package is run by another, which may not import it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def hand_over(module: str, *arguments: object, output: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` in a process of its own, and return when it has ended.

    output: what becomes of its standard output and error, as :func:`subprocess.run` takes it (None: they are this
    process's). What may be run so by whom is held to a list by ``tests/test_architecture.py``.
    """
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, stdout=output, stderr=output, text=True, check=False, env=environment)
