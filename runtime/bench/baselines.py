"""What ``runtime.bench`` compares with, each in a process of its own: neither memory nor threads touch our figures."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.schema import Manifest
from runtime.errors import BackendError, RequestError

BASELINES: Mapping[str, Sequence[tuple[str, str]]] = {
    "torch": (("student", "eager"), ("student", "compile")),
    "teacher": (("teacher", "eager"),),
}
"""By name: what is measured, and in which mode."""

_WARM_UP = 3


def check(arguments: Namespace, manifest: Manifest) -> None:
    """Raises RequestError where the baselines' models are not there; asked before anything is measured."""
    base, adapter = folders(arguments, manifest)
    if arguments.baseline and not base.is_dir():
        raise RequestError(f"--baseline needs the base pipeline, and there is no folder {base}: give --base FOLDER")
    if "torch" in arguments.baseline and not adapter.is_dir():
        raise RequestError(
            f"--baseline torch needs the adapter, and there is no folder {adapter}: give --adapter FOLDER"
        )


def folders(arguments: Namespace, manifest: Manifest) -> tuple[Path, Path]:
    """The base pipeline's and the adapter's folder."""
    models = Path("models") / manifest.model
    return arguments.base or models / "teacher", arguments.adapter or models / "adapter"


def run_baseline(
    kind: tuple[str, str], subject: Mapping[str, Any], arguments: Namespace, manifest: Manifest, device: str
) -> dict[str, Any]:
    """What ``python -m arcflow.baseline`` prints of one kind. Raises BackendError with its last line if it fails.

    subject: the size and the evaluations of our own images. device: as torch names it.
    """
    what, mode = kind
    base, adapter = folders(arguments, manifest)
    dtype = arguments.dtype or manifest.networks["backbone"].compute
    command = [sys.executable, "-m", "arcflow.baseline", "--base", base, "--what", what, "--mode", mode]
    command += ["--width", subject["width"], "--height", subject["height"], "--device", device, "--dtype", dtype]
    command += ["--text-tokens", manifest.limits.text_tokens.max, "--guidance", manifest.schedule.guidance]
    command += ["--runs", arguments.baseline_runs, "--prompt", arguments.prompt]
    # What is compiled needs all of them; the teacher's many evaluations warm it up within an image.
    command += ["--warm-up", _WARM_UP if what == "student" else min(arguments.baseline_runs, _WARM_UP)]
    if what == "student":
        command += ["--adapter", adapter, "--nfe", subject["nfe"]]
    if arguments.threads:
        command += ["--threads", arguments.threads]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        hint = "; it needs the extra train: pip install 'arcflow[train]'" if "ModuleNotFoundError" in last else ""
        raise BackendError(f"the baseline {what} ({mode}) failed: {last}{hint}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
