"""How long a picture takes: ``python benchmarks/latency.py``.

Three measurements on one machine in one run, each in processes of its own:

- cold: ``python -m runtime.generate`` from process start to exit, and its peak memory;
- warm: the runtime's stages, one picture at a time;
- teacher: the diffusers FluxPipeline that the student was distilled from, 50 steps with its guidance, in eager PyTorch
  with as many threads (left out, and said so, where the teacher or diffusers is not there).

Prints a table, then one line of JSON with the figures, their ratios and the machine.
"""

from __future__ import annotations

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

TEACHERS = (ROOT / "models" / "tiny" / "teacher", ROOT / ".work" / "tiny" / "teacher")
TEACHER_STEPS, GUIDANCE, SIDE, TEXT_TOKENS = 50, 2.0, 32, 12
WARM_UP = 3
_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "pillow", "torch", "diffusers", "transformers")
_MIB = 1 << 20


class BenchmarkError(ArcFlowError):
    """A measured process failed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/latency.py", description="Measure how long a picture takes.")
    parser.add_argument("--model", default="tiny", help="a model's name, or a bundle's folder (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, help="a FluxPipeline folder (default: models/tiny/teacher)")
    parser.add_argument("--no-teacher", action="store_true", help="leave the teacher out")
    parser.add_argument("--prompt", default="a dark ankle boot")
    parser.add_argument("--threads", type=int, default=_cores(), help="compute threads (default: the cores)")
    parser.add_argument("--cold-runs", type=int, default=7, metavar="N")
    parser.add_argument("--warm-runs", type=int, default=50, metavar="N")
    parser.add_argument("--teacher-runs", type=int, default=5, metavar="N")
    parser.add_argument("--worker", choices=sorted(_WORKERS), help="measure one thing in this process (internal)")
    arguments = parser.parse_args(argv)
    for name in ("threads", "cold_runs", "warm_runs", "teacher_runs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.worker:
        sys.stdout.write(json.dumps(_WORKERS[arguments.worker](arguments)) + "\n")
        return 0
    if arguments.teacher is None:
        arguments.teacher = next((folder for folder in TEACHERS if folder.is_dir()), TEACHERS[0])
    result: dict[str, Any] = {"cold": _cold(arguments), "warm": _in_a_worker("runtime", arguments)}
    with_teacher = arguments.teacher.is_dir() and not arguments.no_teacher
    result["teacher"] = _in_a_worker("teacher", arguments) if with_teacher else None
    result["ratios"] = _ratios(result["warm"], result["teacher"])
    result["machine"] = _machine(arguments.threads)
    sys.stdout.write(_table(result, arguments) + "\n" + json.dumps(result) + "\n")
    return 0


def _cold(arguments: Namespace) -> dict[str, float]:
    """Median wall seconds of a fresh process, from spawn to exit, its own count to the file, and its peak memory."""
    walls, totals, peaks = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "runtime.generate", arguments.prompt, "--model", _model(arguments)]
        command += ["--threads", str(arguments.threads), "--json", "--out", str(Path(folder) / "x.png")]
        for attempt in range(arguments.cold_runs + 1):
            start = time.perf_counter()
            with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
                process = subprocess.Popen(command, stdout=output, stderr=errors, cwd=ROOT)
                # wait4 gives this child's own peak; RUSAGE_CHILDREN would give the largest of all so far.
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                wall = time.perf_counter() - start
                if process.returncode:
                    errors.seek(0)
                    raise BenchmarkError(f"runtime.generate failed: {_last_line(errors.read())}")
                output.seek(0)
                document = json.load(output)
            if attempt:  # The first run fills the page cache and writes the bytecode.
                walls.append(wall)
                totals.append(document["timings"]["total"])
                peaks.append(usage.ru_maxrss * 1024 / _MIB)
    return {
        "wall_s": statistics.median(walls),
        "wall_max_s": max(walls),
        "to_file_s": statistics.median(totals),
        "peak_rss_mib": max(peaks),
        "runs": len(walls),
    }


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


def _ratios(warm: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, float] | None:
    if teacher is None:
        return None
    return {
        "denoise": teacher["denoise_s"] / warm["denoise_s"],
        "total": teacher["total_s"] / warm["total_s"],
    }


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
    cold, warm, teacher, machine = (result[name] for name in ("cold", "warm", "teacher", "machine"))
    rows = [
        (
            "cold start: process start to exit",
            f"{cold['wall_s'] * 1e3:.0f} ms (slowest {cold['wall_max_s'] * 1e3:.0f})",
        ),
        ("cold start: process start to file", f"{cold['to_file_s'] * 1e3:.0f} ms"),
        ("cold start: peak memory", f"{cold['peak_rss_mib']:.0f} MiB"),
        ("bundle verified and loaded", f"{warm['open_s'] * 1e3:.0f} ms"),
        (f"warm picture, {warm['nfe']} evaluations", f"{warm['total_s'] * 1e3:.2f} ms"),
        *((f"  {stage}", f"{seconds * 1e3:.2f} ms") for stage, seconds in warm["stages_s"].items()),
    ]
    if teacher is None:
        reason = "left out" if arguments.no_teacher else f"there is no folder {arguments.teacher}"
        rows.append(("teacher", f"not measured: {reason}"))
    else:
        ratios = result["ratios"]
        rows += [
            (f"teacher picture, {teacher['steps']} steps", f"{teacher['total_s'] * 1e3:.1f} ms"),
            ("  denoising", f"{teacher['denoise_s'] * 1e3:.1f} ms"),
            ("teacher / ArcFlow, denoising", f"{ratios['denoise']:.1f} x"),
            ("teacher / ArcFlow, whole picture", f"{ratios['total']:.1f} x"),
        ]
    rows.append(("machine", f"{machine['cpu']}, {machine['threads']} threads"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


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
