"""How long an image takes: ``python benchmarks/latency.py``.

Measurements on one machine in one run, each in processes of its own:

- cold: ``python -m runtime.generate`` and the C++ ``arcflow-cli`` from process start to exit, and their peak memory,
  taken in turns;
- warm: the stages of the Python runtime, and of the native library from a C++ program, one image at a time (what is
  native is left out, and said so, where ``make native`` has not been run);
- teacher: the diffusers FluxPipeline that the student was distilled from, 50 steps with its guidance, in eager PyTorch
  with as many threads (left out, and said so, where the teacher or diffusers is not there).

Prints a table, then the record as one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.serving import NATIVE
from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from foundation.measuring import begin, cores, shown, tell, timing

TEACHERS = (ROOT / "models" / "tiny" / "teacher", ROOT / ".work" / "tiny" / "teacher")
WARM_UP = 3
_RATIOS = {
    "denoise": ("teacher / Python, denoising", "teacher", "warm", "denoise_s"),
    "total": ("teacher / Python, whole image", "teacher", "warm", "total_s"),
    "python_to_native_total": ("Python / C++, warm image", "warm", "warm_native", "total_s"),
    "python_to_native_cold": ("Python / C++, cold start", "cold", "cold_native", "wall_s"),
    "teacher_to_native_total": ("teacher / C++, whole image", "teacher", "warm_native", "total_s"),
}
_MIB = 1 << 20


class BenchmarkError(ArcFlowError):
    """A measured process failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/latency.py", description="Measure how long an image takes.")
    add = parser.add_argument
    add("--model", default="tiny", help="a model's name, or a bundle's folder (default: %(default)s)")
    add("--teacher", type=Path, help="a FluxPipeline folder (default: models/tiny/teacher)")
    add("--no-teacher", action="store_true", help="leave the teacher out")
    add("--no-native", action="store_true", help="leave the native library and arcflow-cli out")
    add("--prompt", default="a smiling face with sunglasses")
    add("--threads", type=int, default=cores(), help="compute threads (default: the cores)")
    add("--cold-runs", type=int, default=7, metavar="N")
    add("--warm-runs", type=int, default=50, metavar="N")
    add("--teacher-runs", type=int, default=5, metavar="N")
    add("--rounds", type=int, default=5, metavar="N", help="of the warm runs, in turns; the median counts")
    arguments = parser.parse_args(argv)
    for name in ("threads", "cold_runs", "warm_runs", "teacher_runs", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.teacher is None:
        arguments.teacher = next((folder for folder in TEACHERS if folder.is_dir()), TEACHERS[0])
    with_native = not arguments.no_native and NATIVE.is_dir()
    begun = begin(parser.prog, argv)
    options = [arguments.prompt, "--model", _model(arguments), "--threads", str(arguments.threads), "--json"]
    commands = {"cold": [sys.executable, "-m", "runtime.generate", *options]}
    if with_native:
        commands["cold_native"] = [str(_built("arcflow-cli")), *options, "--library", str(_onnxruntime())]
    with_teacher = arguments.teacher.is_dir() and not arguments.no_teacher
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        warm: dict[str, Callable[[], dict[str, Any]] | None] = {
            "warm": lambda: _python(arguments, folder),
            "warm_native": (lambda: _native(arguments)) if with_native else None,
            "teacher": (lambda: _teacher(arguments)) if with_teacher else None,
        }
        found = {**_cold(commands, arguments.cold_runs, folder), **_in_turns(warm, arguments.rounds)}
    result = {**begun, "threads": arguments.threads, **found, "ratios": _ratios(found)}
    tell(result, _rows(result, arguments))
    return 0


def _in_turns(measured: Mapping[str, Callable[[], dict[str, Any]] | None], rounds: int) -> dict[str, Any]:
    """Of each measurement the round whose image took the median time; None for what is left out.

    In turns, because a machine that others share is faster in one minute than in the next.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            if measure is not None:
                found[name].append(measure())
    return {
        name: {**sorted(each, key=lambda one: one["total_s"])[len(each) // 2], "rounds": rounds} if each else None
        for name, each in found.items()
    }


def _cold(commands: Mapping[str, Sequence[str]], runs: int, folder: Path) -> dict[str, dict[str, Any]]:
    """For each command, in turns: wall seconds from spawn to exit, its own count to the file, its peak memory."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, command in commands.items():
            found[name].append(_run_once([*command, "--out", str(folder / "x.png")]))
    each = {name: list(zip(*made[1:], strict=True)) for name, made in found.items()}  # The first fills the page cache.
    return {
        name: {
            "wall": asdict(timing(walls)),
            "to_file_s": statistics.median(totals),
            "peak_rss_mib": max(peaks),
        }
        for name, (walls, totals, peaks) in each.items()
    }


def _run_once(command: Sequence[str]) -> tuple[float, float, float]:
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT)
        # wait4 gives this child's own peak; RUSAGE_CHILDREN would give the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            raise BenchmarkError(f"{Path(command[0]).name} failed: {_last_line(errors.read())}")
        output.seek(0)
        return wall, json.load(output)["timings"]["total"], usage.ru_maxrss * 1024 / _MIB


def _native(arguments: Namespace) -> dict[str, Any]:
    """The native library's stages, from a C++ program that opens it; the folder of a bundle is looked up here."""
    from engines.locate import locate

    folder = Path(arguments.model) if Path(arguments.model).is_dir() else locate(arguments.model, target="cpu")
    command = [_built("probe_latency"), _built("libarcflow_runtime.so"), folder.resolve(), _onnxruntime()]
    return _said([*command, arguments.threads, arguments.warm_runs, arguments.prompt], "native")


def _built(name: str) -> Path:
    """A file of the native build. Raises BenchmarkError where it is not there."""
    found = sorted(path for path in NATIVE.rglob(name) if path.is_file())
    if not found:
        raise BenchmarkError(f"{NATIVE} has no {name}: run make native, or leave it out with --no-native")
    return found[0]


def _onnxruntime() -> Path:
    """The library inside the installed package: both runtimes are measured on the same one."""
    from runtime.hosts.native import onnxruntime_library

    found = onnxruntime_library()
    if found is None:
        raise BenchmarkError(
            "the package onnxruntime, or the library in it, is not installed: leave the native part out, --no-native"
        )
    return found


def _python(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """The Python runtime's stages, as ``runtime.bench`` has them."""
    command = [sys.executable, "-m", "runtime.bench", "--model", _model(arguments), "--threads", arguments.threads]
    command += ["--prompts", "same", "--prompt", arguments.prompt, "--runs", arguments.warm_runs]
    found = _said([*command, "--warm-up", WARM_UP, "--timeline", folder / "x.png"], "runtime")
    stages = {name: stage["median_s"] for name, stage in found["stages"].items()}
    return {
        "open_s": found["open_s"],
        "total_s": found["total"]["median_s"],
        "denoise_s": sum(seconds for name, seconds in stages.items() if name.startswith(("evaluation", "solver"))),
        "stages_s": stages,
        "nfe": found["nfe"],
        "runs": found["total"]["samples"],
    }


def _teacher(arguments: Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.teacher", arguments.teacher, arguments.prompt]
    return _said([*command, arguments.threads, arguments.teacher_runs], "teacher")


def _said(command: Sequence[Any], what: str) -> dict[str, Any]:
    """The last line of a program, which is JSON. Raises BenchmarkError with its error where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchmarkError(f"the {what} measurement failed: {_last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """How many times as long the first takes as the second, where both were measured."""
    times = {**found}
    for name in ("cold", "cold_native"):
        if name in found:
            times[name] = {"wall_s": found[name]["wall"]["median_s"]}
    return {
        name: times[slow][figure] / times[fast][figure]
        for name, (_, slow, fast, figure) in _RATIOS.items()
        if times.get(slow) and times.get(fast)
    }


def _rows(result: Mapping[str, Any], arguments: Namespace) -> list[tuple[str, str]]:
    teacher = result["teacher"]
    rows = _rows_of("Python", result["cold"], result["warm"])
    if result["warm_native"] is None:
        reason = "left out" if arguments.no_native else f"there is no {NATIVE}; run make native"
        rows.append(("C++", f"not measured: {reason}"))
    else:
        rows += _rows_of("C++", result["cold_native"], result["warm_native"])
        rows.append(("  outside the networks", _ms(result["warm_native"]["outside_networks_s"])))
    if teacher is None:
        reason = "left out" if arguments.no_teacher else f"there is no folder {arguments.teacher}"
        rows.append(("teacher", f"not measured: {reason}"))
    else:
        rows.append((f"teacher image, {teacher['steps']} steps", _ms(teacher["total_s"])))
        rows.append(("  denoising", _ms(teacher["denoise_s"])))
    rows += [(_RATIOS[name][0], f"{ratio:.2f} x") for name, ratio in result["ratios"].items()]
    return [*rows, ("machine", f"{shown(result['machine'])}; {result['threads']} threads")]


def _rows_of(runtime: str, cold: Mapping[str, Any], warm: Mapping[str, Any]) -> list[tuple[str, str]]:
    wall = cold["wall"]
    return [
        (f"{runtime}: cold start, process start to exit", f"{_ms(wall['median_s'])} (p99 {_ms(wall['p99_s'])})"),
        (f"{runtime}: cold start, process start to file", _ms(cold["to_file_s"])),
        (f"{runtime}: cold start, peak memory", f"{cold['peak_rss_mib']:.0f} MiB"),
        (f"{runtime}: bundle verified and loaded", _ms(warm["open_s"])),
        (f"{runtime}: warm image, {warm['nfe']} evaluations", _ms(warm["total_s"])),
        *((f"  {stage}", _ms(seconds)) for stage, seconds in warm["stages_s"].items()),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def _model(arguments: Namespace) -> str:
    """The model as the measured processes, which run in the repository's root, must be told it."""
    return str(Path(arguments.model).resolve()) if Path(arguments.model).is_dir() else str(arguments.model)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(run(main))
