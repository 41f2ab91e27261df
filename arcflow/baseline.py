"""``python -m arcflow.baseline``: what engines are measured against, the same images by diffusers in torch.

The student, eager or compiled: text encoders, evaluations, closed form and VAE of the base pipeline in its own modules.
Or the teacher: the stock pipeline with its many steps. Prints one line of JSON, which ``runtime.bench`` reads.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foundation.cli import ArgumentParser, run
from foundation.measuring import percentile

_EXAMPLES = """examples:
  python -m arcflow.baseline --base models/tiny/teacher --adapter models/tiny/adapter --width 64 --height 64 \\
      --text-tokens 12 --guidance 2
  python -m arcflow.baseline --base FLUX.1-dev --adapter arcflow-flux --mode compile --device cuda --dtype bfloat16
  python -m arcflow.baseline --base FLUX.1-dev --what teacher --steps 50 --device cuda --dtype bfloat16
"""
_KINDS = ("student", "teacher")
_MODES = ("eager", "compile")
_DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0. Raises ArcFlowError."""
    parser = ArgumentParser(
        prog="python -m arcflow.baseline", description="Time a student or its teacher in torch.", epilog=_EXAMPLES
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, help="the teacher's pipeline: a diffusers folder")
    add("--adapter", type=Path, help="the student's adapter folder (needed for --what student)")
    add("--partial", action="store_const", dest="coverage", const="partial", default="whole",
        help="take an adapter that lacks LoRA pairs")  # fmt: skip
    add("--what", choices=_KINDS, default="student", help="default: %(default)s")
    add("--mode", choices=_MODES, default="eager", help="compile: torch.compile of the backbone (default: %(default)s)")
    add("--prompt", default="a smiling face with sunglasses")
    add("--width", type=int, default=1024, metavar="PX")
    add("--height", type=int, default=1024, metavar="PX")
    add("--text-tokens", type=int, default=512, metavar="N", help="longest prompt (default: %(default)s)")
    add("--nfe", type=int, help="the student's evaluations (default: its adapter's)")
    add("--steps", type=int, default=50, help="the teacher's steps (default: %(default)s)")
    add("--guidance", type=float, help="default: the adapter's; the teacher's: its family's")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    add("--dtype", choices=_DTYPES, default="float32", help="of all networks (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="compute threads on a CPU (default: torch's)")
    add("--runs", type=int, default=50, metavar="N", help="measured images (default: %(default)s)")
    add("--warm-up", type=int, default=3, metavar="N", help="images before them (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name in ("width", "height", "text_tokens", "nfe", "steps", "runs", "warm_up"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.what == "student" and arguments.adapter is None:
        parser.error("--what student needs --adapter FOLDER")
    sys.stdout.write(json.dumps(measure(arguments)) + "\n")
    return 0


def measure(arguments: Namespace) -> dict[str, Any]:
    """Seconds by stage and of the whole image (median and 99th percentile), and the peak memory in bytes.

    Raises BackboneError for a pipeline that is none of FLUX or Qwen-Image or a device that is not there, AdapterError.
    """
    import torch

    from arcflow.sources.pipeline import choose_device, open_pipeline

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    pipeline = open_pipeline(arguments.base, getattr(torch, arguments.dtype))
    prepare = _student if arguments.what == "student" else _teacher
    make, evaluations = prepare(pipeline, arguments, device)
    walls: list[float] = []
    stages: dict[str, list[float]] = {}
    for attempt in range(arguments.warm_up + arguments.runs):
        clock = _Clock(device)
        make(attempt, clock)
        if attempt >= arguments.warm_up:
            walls.append(clock.total)
            for name, seconds in clock.stages.items():
                stages.setdefault(name, []).append(seconds)
    return {
        "what": arguments.what,
        "mode": arguments.mode if arguments.what == "student" else "eager",
        "stages_s": {name: statistics.median(values) for name, values in stages.items()},
        "total_s": statistics.median(walls),
        "total_p99_s": percentile(walls, 0.99),
        "evaluations": evaluations,
        "runs": len(walls),
        "peak_bytes": _peak(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": arguments.dtype,
    }


class _Clock:
    """Seconds by stage; the device has finished at both ends of each."""

    def __init__(self, device: Any) -> None:
        self.stages: dict[str, float] = {}
        self._device = device
        self._start = self._last = self._now()

    @property
    def total(self) -> float:
        """From the beginning to the last mark."""
        return self._last - self._start

    def mark(self, name: str) -> None:
        """The stage that began at the last mark is over."""
        now = self._now()
        self.stages[name] = self.stages.get(name, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


_Make = Callable[[int, _Clock], None]
"""Makes one image from a seed and marks the stages."""


def _teacher(pipeline: Any, arguments: Namespace, device: Any) -> tuple[_Make, int]:
    import torch

    from arcflow.students import architecture_of_pipeline

    family = architecture_of_pipeline(type(pipeline).__name__)
    pipeline.to(device)
    guidance = family.GUIDANCE if arguments.guidance is None else arguments.guidance
    options: dict[str, Any] = {"height": arguments.height, "width": arguments.width, **family.guided(guidance)}
    options |= {"num_inference_steps": arguments.steps, "max_sequence_length": arguments.text_tokens}

    def make(seed: int, clock: _Clock) -> None:
        pipeline(arguments.prompt, generator=torch.Generator().manual_seed(seed), **options)
        clock.mark("pipeline")

    return make, arguments.steps


def _student(pipeline: Any, arguments: Namespace, device: Any) -> tuple[_Make, int]:
    import torch

    from arcflow.adapter import merge_into, read_adapter
    from arcflow.architectures.packing import unpack
    from arcflow.sampling import integrate
    from arcflow.schedule import sigmas
    from arcflow.students import architecture_of_pipeline, build_student

    family = architecture_of_pipeline(type(pipeline).__name__)
    adapter = read_adapter(arguments.adapter)
    policy = adapter.config.policy
    teacher = pipeline.transformer
    student: Any = merge_into(
        build_student(dict(teacher.config), adapter.config.modes, family.NAME).to(teacher.dtype),
        teacher.state_dict(),
        adapter,
        arguments.coverage,
    )
    pipeline.transformer = None
    pipeline.to(device)
    student = student.eval().requires_grad_(False).to(device)
    if arguments.mode == "compile":
        student = torch.compile(student)
    nfe = arguments.nfe or policy.nfe
    guidance = policy.guidance if arguments.guidance is None else arguments.guidance
    levels = sigmas(nfe, policy.shift, policy.final_step_ratio)
    factor = 2 * pipeline.vae_scale_factor
    rows, columns = arguments.height // factor, arguments.width // factor
    channels, dtype = teacher.config.in_channels, teacher.dtype

    @torch.no_grad()
    def make(seed: int, clock: _Clock) -> None:
        condition = family.encode(pipeline, arguments.prompt, arguments.text_tokens, guidance, rows, columns)
        clock.mark("text")
        x = torch.randn(1, rows * columns, channels, generator=torch.Generator().manual_seed(seed)).to(device)
        clock.mark("noise")
        evaluations = itertools.count(1)

        def evaluate(x: Any, sigma: Any) -> Any:
            field = family.evaluate(student, x.to(dtype), sigma, condition, policy.conditioning_dtype)
            clock.mark(f"evaluation {next(evaluations)}")
            return field

        x = integrate(evaluate, x, levels, lambda *segment: clock.mark(f"solver {levels.index(segment[3])}"))
        family.decode(pipeline.vae, unpack(x, rows, columns).to(dtype))
        clock.mark("vae")

    return make, nfe


def _peak(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(run(main))
