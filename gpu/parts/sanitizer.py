"""compute-sanitizer over the scenarios: accesses out of bounds, races, memory that was never written, barriers."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from gpu.catalogue import Options
from gpu.device import need_gpu
from gpu.parts.scenarios import COMMAND, ROOT
from gpu.records import Emit, Printer, SkipPartError, guarded

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
"""In the order of what they find most often."""

_SECONDS = 60
_FOUND = 86
"""Its exit code where it found something: none of the program's own."""

_ELSEWHERE = Path("/usr/local/cuda/bin/compute-sanitizer")


def run(printer: Printer, options: Options) -> None:
    """One tool after the other."""
    need_gpu()
    found = shutil.which("compute-sanitizer") or (str(_ELSEWHERE) if _ELSEWHERE.is_file() else None)
    if found is None:
        raise SkipPartError("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    for tool in TOOLS:
        guarded(printer, tool, partial(check, printer, found, tool))


def check(emit: Emit, sanitizer: str, tool: str) -> None:
    """Whether a tool finds nothing. Raises SkipPartError where it does not work on this machine."""
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "10"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # The scenarios ask for too much memory, and mean it.
    command = [sanitizer, *options, *COMMAND]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        raise SkipPartError(f"not ended after {_SECONDS} s") from late
    said = done.stdout + done.stderr
    summary = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", said, re.MULTILINE)
    if not summary:
        raise SkipPartError(f"no answer from it (exit code {done.returncode}): {' '.join(said.split())[-300:]}")
    clean, shown = done.returncode == 0, summary[-1]
    if not clean and done.returncode != _FOUND:
        shown += f"; the program ended with {done.returncode}"
    emit(
        f"sanitizer: {tool}",
        shown,
        clean,
        check=True,
        seconds=round(time.monotonic() - start, 2),
        findings=None if clean else said[-6000:],
    )
