"""One network from ONNX to a TensorRT plan on disk, built in a process of its own.

The builder gets a process because it then can be stopped at once, gives back all its memory, takes only itself down
where it crashes, keeps its chatter off the terminal, and finds the same memory addresses each time: it orders some
tensors by them, and plans of equal inputs would differ otherwise (see :mod:`export.tensorrt.addresses`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from export.errors import EngineError
from export.tensorrt.addresses import fixed_addresses
from export.tensorrt.flavours import Toolkit
from export.tensorrt.job import DEFAULT_OPT_LEVEL, Built, Job, Options
from export.tensorrt.profiles import Profile
from export.tensorrt.progress import Progress, Report
from export.tensorrt.report import PlanReport
from export.tensorrt.targets import Target
from foundation.files import atomic_file

__all__ = ["DEFAULT_OPT_LEVEL", "Options", "PlanReport", "build_plan", "decode", "encode"]

_ROOT = Path(__file__).resolve().parents[2]
_SAME_HEAP = "glibc.malloc.tcache_count=65535"
"""With caches a thread that never overflow, what TensorRT's helper threads free early or late does not come back to the
thread that builds: where its tensors lie does not depend on which thread was the faster one."""

_LAST_WORDS = 2000
"""Bytes of a crashed builder's output that are looked at for a reason."""


def build_plan(
    onnx: Path,
    out: Path,
    *,
    target: Target,
    profile: Profile,
    toolkit: Toolkit,
    name: str | None = None,
    options: Options | None = None,
    report: Report = lambda progress: None,
) -> PlanReport:
    """Build ``onnx`` (its external data beside it) into the plan ``out``, which appears whole or not at all.

    profile: least, usual and greatest shape of every input; name: of the network, default the file's; report: called
    with a fraction that only grows. The same inputs, TensorRT and machine give the same bytes (the data-centre
    flavour: with the same timing cache).
    Raises EngineError (a graph that TensorRT cannot take, shapes that do not fit it, a build that failed) or
    ArcFlowError (a folder that cannot be written). What ``report`` raises, and Ctrl-C, stop the builder at once.
    """
    name, options = name or onnx.stem, options or Options()
    if toolkit.flavour not in target.flavours:
        raise EngineError(f"{toolkit.flavour} does not build for {target.name}; use {' or '.join(target.flavours)}")
    if not onnx.is_file():
        raise EngineError(f"there is no {onnx} to build a plan from")
    started = time.monotonic()
    with atomic_file(out) as temporary:
        job = Job(onnx.absolute(), temporary.absolute(), name, toolkit.flavour, target.capabilities, profile, options)
        built = _run(job, report)
    report(Progress(1.0, "done"))
    return PlanReport(
        network=name,
        path=out,
        size=built.size,
        sha256=built.sha256,
        flavour=toolkit.flavour,
        version=toolkit.version,
        capabilities=target.capabilities,
        opt_level=options.opt_level,
        seconds=time.monotonic() - started,
        warnings=built.warnings,
        layers=built.layers,
        memory=built.memory,
        profile=profile,
    )


def encode(value: object) -> bytes:
    """JSON, on one line, of dataclasses that hold paths."""
    return msgspec.json.encode(value, enc_hook=str)


def decode(data: object, kind: type[Any]) -> Any:
    """The opposite of :func:`encode`, from what its JSON was parsed to. Raises msgspec.ValidationError."""
    return msgspec.convert(data, kind, dec_hook=lambda wanted, value: Path(value) if wanted is Path else value)


def _run(job: Job, report: Report) -> Built:
    command = [sys.executable, "-m", "export.tensorrt.worker"]
    with tempfile.TemporaryFile() as said:
        with fixed_addresses():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=_environment()
            )
        with process:
            try:
                answer = _converse(process, job, report)
            finally:
                process.kill()  # It has answered, or is not to: nothing of it is worth waiting for.
            code = process.wait()
        if answer is None:
            raise EngineError(f"the builder of {job.name} ended without an answer ({code}): {_last_words(said)}")
    if "built" in answer:
        built: Built = decode(answer["built"], Built)
        return built
    if "errno" in answer:
        raise OSError(answer["errno"], answer["error"])
    raise EngineError(answer["error"])


def _environment() -> dict[str, str]:
    """Ours, and what makes the worker find this code and use its memory in the same way each time."""
    added = {"PYTHONPATH": (str(_ROOT), os.pathsep), "GLIBC_TUNABLES": (_SAME_HEAP, ":")}
    before = dict(os.environ)
    joined = {
        name: separator.join(filter(None, [value, before.get(name)])) for name, (value, separator) in added.items()
    }
    return {**before, **joined, "PYTHONHASHSEED": "0"}


def _converse(process: subprocess.Popen[bytes], job: Job, report: Report) -> dict[str, Any] | None:
    """Hand over the job, pass progress on, and return the answer; None where the worker ended without one.

    The pipe to the worker stays open: it ends when this process does.
    """
    if process.stdin is None or process.stdout is None:
        return None
    asked = encode(job) + b"\n"
    try:
        while asked:  # Past the pipe's own buffer, which could not be emptied, nor closed, where the worker is gone.
            asked = asked[os.write(process.stdin.fileno(), asked) :]
    except BrokenPipeError:
        return None
    for line in process.stdout:
        message: dict[str, Any] = msgspec.json.decode(line)
        if "fraction" not in message:
            return message
        report(decode(message, Progress))
    return None


def _last_words(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(size - _LAST_WORDS, 0))
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing; there may be too little memory"
