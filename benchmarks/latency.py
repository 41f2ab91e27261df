"""How long an image takes: ``python benchmarks/latency.py``.

Measurements on one machine in one run, each in processes of its own:

- cold: ``python -m runtime.generate`` and the C++ ``arcflow-cli`` from process start to exit, and their peak memory,
  taken in turns;
- warm: the stages of the Python runtime, and of the native library from a C++ program, one image at a time (what is
  native is left out, and said so, where ``make native`` has not been run);
- teacher: the diffusers FluxPipeline that the student was distilled from, 50 steps with its guidance, in eager PyTorch
  with as many threads (left out, and said so, where the teacher or diffusers is not there).

Prints a table, then one line of JSON with the figures, their ratios and the machine.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from foundation.cli import ArgumentParser, run  # noqa: E402
from foundation.errors import ArcFlowError  # noqa: E402

NATIVE = Path(os.environ.get("ARCFLOW_NATIVE_BUILD") or ROOT / "build" / "native")
TEACHERS = (ROOT / "models" / "tiny" / "teacher", ROOT / ".work" / "tiny" / "teacher")
TEACHER_STEPS, GUIDANCE, SIDE, TEXT_TOKENS = 50, 2.0, 32, 12
WARM_UP = 3
_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "pillow", "torch", "diffusers", "transformers")
_MIB = 1 << 20


class BenchmarkError(ArcFlowError):
    """A measured process failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/latency.py", description="Measure how long an image takes.")
    parser.add_argument("--model", default="tiny", help="a model's name, or a bundle's folder (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, help="a FluxPipeline folder (default: models/tiny/teacher)")
    parser.add_argument("--no-teacher", action="store_true", help="leave the teacher out")
    parser.add_argument("--no-native", action="store_true", help="leave the native library and arcflow-cli out")
    parser.add_argument("--prompt", default="a dark ankle boot")
    parser.add_argument("--threads", type=int, default=_cores(), help="compute threads (default: the cores)")
    parser.add_argument("--cold-runs", type=int, default=7, metavar="N")
    parser.add_argument("--warm-runs", type=int, default=50, metavar="N")
    parser.add_argument("--teacher-runs", type=int, default=5, metavar="N")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of the warm runs, in turns; the median counts"
    )
    parser.add_argument("--worker", choices=sorted(_WORKERS), help="measure one thing in this process (internal)")
    arguments = parser.parse_args(argv)
    for name in ("threads", "cold_runs", "warm_runs", "teacher_runs", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.worker:
        sys.stdout.write(json.dumps(_WORKERS[arguments.worker](arguments)) + "\n")
        return 0
    if arguments.teacher is None:
        arguments.teacher = next((folder for folder in TEACHERS if folder.is_dir()), TEACHERS[0])
    with_native = not arguments.no_native and NATIVE.is_dir()
    commands = {"cold": _python_command(arguments)} | ({"cold_native": _cli_command(arguments)} if with_native else {})
    result: dict[str, Any] = dict(_cold(commands, arguments.cold_runs))
    with_teacher = arguments.teacher.is_dir() and not arguments.no_teacher
    warm: dict[str, Callable[[], dict[str, Any]] | None] = {
        "warm": lambda: _in_a_worker("runtime", arguments),
        "warm_native": (lambda: _native(arguments)) if with_native else None,
        "teacher": (lambda: _in_a_worker("teacher", arguments)) if with_teacher else None,
    }
    result.update(_in_turns(warm, arguments.rounds))
    result["ratios"] = _ratios(result)
    result["machine"] = _machine(arguments.threads)
    sys.stdout.write(_table(result, arguments) + "\n" + json.dumps(result) + "\n")
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


def _python_command(arguments: Namespace) -> list[str]:
    return [sys.executable, "-m", "runtime.generate", *_cli_options(arguments)]


def _cli_command(arguments: Namespace) -> list[str]:
    return [str(_built("arcflow-cli")), *_cli_options(arguments), "--library", str(_onnxruntime())]


def _cli_options(arguments: Namespace) -> list[str]:
    return [arguments.prompt, "--model", _model(arguments), "--threads", str(arguments.threads), "--json"]


def _cold(commands: Mapping[str, Sequence[str]], runs: int) -> dict[str, dict[str, float]]:
    """For each command, in turns: wall seconds from spawn to exit, its own count to the file, its peak memory."""
    walls: dict[str, list[float]] = {name: [] for name in commands}
    totals: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for attempt in range(runs + 1):
            for name, command in commands.items():
                wall, total, peak = _run_once([*command, "--out", str(Path(folder) / "x.png")])
                if attempt:  # The first run fills the page cache and writes the bytecode.
                    walls[name].append(wall)
                    totals[name].append(total)
                    peaks[name].append(peak)
    return {
        name: {
            "wall_s": statistics.median(walls[name]),
            "wall_max_s": max(walls[name]),
            "to_file_s": statistics.median(totals[name]),
            "peak_rss_mib": max(peaks[name]),
            "runs": runs,
        }
        for name in commands
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
    command += [arguments.threads, arguments.warm_runs, arguments.prompt]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchmarkError(f"the native measurement failed: {_last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _built(name: str) -> Path:
    """A file of the native build. Raises BenchmarkError where it is not there."""
    found = sorted(path for path in NATIVE.rglob(name) if path.is_file())
    if not found:
        raise BenchmarkError(f"{NATIVE} has no {name}: run make native, or leave it out with --no-native")
    return found[0]


def _onnxruntime() -> Path:
    """The library inside the installed package: both runtimes are measured on the same one."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise BenchmarkError("the package onnxruntime is not installed")
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        raise BenchmarkError(
            "the package onnxruntime holds no libonnxruntime.so: leave the native part out, --no-native"
        )
    return found[0]


def _in_a_worker(name: str, arguments: Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", name, "--model", _model(arguments), "--prompt", arguments.prompt]
    command += ["--threads", str(arguments.threads), "--warm-runs", str(arguments.warm_runs)]
    command += ["--teacher-runs", str(arguments.teacher_runs), "--teacher", str(arguments.teacher)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise BenchmarkError(f"the {name} measurement failed: {_last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _runtime_worker(arguments: Namespace) -> dict[str, Any]:
    from runtime import Pipeline

    start = time.perf_counter()
    pipeline = Pipeline.open(arguments.model, threads=arguments.threads)
    opened = time.perf_counter() - start
    walls: list[float] = []
    stages: dict[str, list[float]] = {}
    for attempt in range(WARM_UP + arguments.warm_runs):
        start = time.perf_counter()
        made = pipeline.generate(arguments.prompt, seed=attempt)
        wall = time.perf_counter() - start
        if attempt >= WARM_UP:
            walls.append(wall)
            for stage, seconds in made.timings.items():
                stages.setdefault(stage, []).append(seconds)
    medians = {stage: statistics.median(values) for stage, values in stages.items()}
    return {
        "open_s": opened,
        "total_s": statistics.median(walls),
        "denoise_s": medians["backbone"] + medians["solver"],
        "stages_s": medians,
        "nfe": made.settings.nfe,
        "runs": len(walls),
    }


def _teacher_worker(arguments: Namespace) -> dict[str, Any]:
    try:
        import torch
        from diffusers import FluxPipeline
    except ImportError as error:
        raise BenchmarkError(
            f"the teacher needs the extra 'train' ({error}); leave it out with --no-teacher"
        ) from error

    torch.set_num_threads(arguments.threads)
    pipeline: Any = FluxPipeline.from_pretrained(arguments.teacher, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    marks: dict[str, float] = {}
    pipeline.transformer.register_forward_pre_hook(lambda *_: marks.setdefault("first", time.perf_counter()) and None)

    def step_end(_: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        marks["last"] = time.perf_counter()
        return kwargs

    walls, denoise = [], []
    for attempt in range(1 + arguments.teacher_runs):
        marks.clear()
        start = time.perf_counter()
        pipeline(
            arguments.prompt,
            height=SIDE,
            width=SIDE,
            num_inference_steps=TEACHER_STEPS,
            guidance_scale=GUIDANCE,
            max_sequence_length=TEXT_TOKENS,
            generator=torch.Generator().manual_seed(attempt),
            callback_on_step_end=step_end,
        )
        if attempt:
            walls.append(time.perf_counter() - start)
            denoise.append(marks["last"] - marks["first"])
    return {
        "total_s": statistics.median(walls),
        "denoise_s": statistics.median(denoise),
        "steps": TEACHER_STEPS,
        "runs": len(walls),
    }


_WORKERS: Mapping[str, Callable[[Namespace], dict[str, Any]]] = {
    "runtime": _runtime_worker,
    "teacher": _teacher_worker,
}


def _ratios(result: Mapping[str, Any]) -> dict[str, float]:
    warm, native, teacher = result["warm"], result["warm_native"], result["teacher"]
    ratios = {}
    if teacher is not None:
        ratios["denoise"] = teacher["denoise_s"] / warm["denoise_s"]
        ratios["total"] = teacher["total_s"] / warm["total_s"]
    if native is not None:
        ratios["python_to_native_total"] = warm["total_s"] / native["total_s"]
        ratios["python_to_native_cold"] = result["cold"]["wall_s"] / result["cold_native"]["wall_s"]
    if teacher is not None and native is not None:
        ratios["teacher_to_native_total"] = teacher["total_s"] / native["total_s"]
    return ratios


def _machine(threads: int) -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": _cores(),
        "threads": threads,
        "load_1min": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _table(result: Mapping[str, Any], arguments: Namespace) -> str:
    teacher, machine, ratios = result["teacher"], result["machine"], result["ratios"]
    rows = _rows("Python", result["cold"], result["warm"])
    if result["warm_native"] is None:
        reason = "left out" if arguments.no_native else f"there is no {NATIVE}; run make native"
        rows.append(("C++", f"not measured: {reason}"))
    else:
        rows += _rows("C++", result["cold_native"], result["warm_native"])
        rows += [
            ("  outside the networks", _ms(result["warm_native"]["outside_networks_s"])),
            ("Python / C++, cold start", f"{ratios['python_to_native_cold']:.1f} x"),
            ("Python / C++, warm image", f"{ratios['python_to_native_total']:.2f} x"),
        ]
    if teacher is None:
        reason = "left out" if arguments.no_teacher else f"there is no folder {arguments.teacher}"
        rows.append(("teacher", f"not measured: {reason}"))
    else:
        rows += [
            (f"teacher image, {teacher['steps']} steps", _ms(teacher["total_s"])),
            ("  denoising", _ms(teacher["denoise_s"])),
            ("teacher / Python, denoising", f"{ratios['denoise']:.1f} x"),
            ("teacher / Python, whole image", f"{ratios['total']:.1f} x"),
        ]
        if "teacher_to_native_total" in ratios:
            rows.append(("teacher / C++, whole image", f"{ratios['teacher_to_native_total']:.1f} x"))
    rows.append(("machine", f"{machine['cpu']}, {machine['threads']} threads"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _rows(runtime: str, cold: Mapping[str, float], warm: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{runtime}: cold start, process start to exit", f"{_ms(cold['wall_s'])} (slowest {_ms(cold['wall_max_s'])})"),
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(run(main))
