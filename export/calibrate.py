"""``python -m export.calibrate``: measure how large a student's activations become, for ``build --precision fp8``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.sources.models import choose
from export.sources.options import add_source_options, command, source_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from export.quality.measure import Plan
    from export.students.subject import Subject

WORKDIR = Path(".work") / "calibrate"

_EXAMPLES = """examples:
  python -m export.calibrate --model tiny --out calibration.json
  python -m export.calibrate --model flux --num 32 --size 768x768 --device cuda --out flux.json
  python -m export.calibrate --model qwen --method percentile --percentile 99.99 --out qwen.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate one student; prints an estimate, progress and the file's name."""
    arguments = _parser().parse_args(argv)
    spec = choose(arguments.model)
    from rich.console import Console

    from export.fp8.calibration import write_calibration
    from export.quality.load import check_load, describe_load, expected_load
    from export.quality.measure import measure
    from export.students.subject import inspect_subject
    from export.terminal import hush_libraries, prompts

    _check_out(arguments.out)
    hush_libraries()
    console = Console(stderr=True)
    subject = inspect_subject(spec, arguments.base, arguments.adapter, arguments.lora, arguments.coverage)
    plan = _plan(arguments, subject)
    load = expected_load(subject, plan)
    console.print(describe_load(plan, load), highlight=False, soft_wrap=True)
    check_load(load)
    with console.status("reading base and adapter"):
        subject = subject.digested()
    plan = replace(plan, student=subject.student.parents)
    with prompts(console) as report:
        prompted = subject.prompted(plan.prompts, plan.width, plan.height, plan.dtype, plan.device, report)
        calibration = measure(plan, prompted, arguments.workdir, lambda done, total: report("student", done, total))
    write_calibration(calibration, arguments.out)
    sys.stdout.write(f"{arguments.out}\n")
    console.print(
        f"{len(calibration.amax)} layers over {len(plan.prompts)} prompts; use it with: "
        + command("build", [*source_options(arguments), "--precision", "fp8", "--calibration", arguments.out]),
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export.calibrate",
        description="Run a student over prompts at its own noise levels and write how large its activations become to\n"
        "a small file, which build --precision fp8 needs. Measured without style LoRAs it serves builds with any.\n"
        "A student larger than memory is streamed layer by layer; a run that was interrupted resumes.",
        epilog=_EXAMPLES,
    )
    add_source_options(parser)
    parser.add_argument("--prompts", type=Path, help="text file, one prompt a line (default: the project's own list)")
    parser.add_argument("--num", type=int, help="only the first so many prompts (default: all)")
    parser.add_argument("--method", default="amax", help="amax, percentile or mse (default: amax)")
    parser.add_argument("--percentile", type=float, default=99.99, help="for that method (default: 99.99)")
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: the model's usual size)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--dtype", help="float32 or bfloat16 (default: float32 for a small student, else bfloat16)")
    parser.add_argument("--batch", type=int, default=4, help="prompts a call (default: 4)")
    parser.add_argument("--out", type=Path, required=True, help="calibration file to write")
    parser.add_argument("--workdir", type=Path, default=WORKDIR, help=f"keeps an unfinished run (default: {WORKDIR})")
    return parser


def _plan(arguments: Namespace, subject: Subject) -> Plan:
    """What the arguments ask for. Raises CalibrationError, ExportError."""
    from export.errors import CalibrationError
    from export.fp8.observers import Method
    from export.networks.base import BACKBONE
    from export.networks.streaming import choose_placement
    from export.quality.measure import Plan
    from export.students.subject import default_prompts, read_prompts

    if arguments.method not in set(Method):
        raise CalibrationError(f"--method {arguments.method} is unknown; allowed: {', '.join(Method)}")
    if not 0.0 < arguments.percentile <= 100.0:
        raise CalibrationError(f"--percentile is {arguments.percentile}; it must be above 0 and at most 100")
    if arguments.batch < 1:
        raise CalibrationError(f"--batch is {arguments.batch}; it must be 1 or more")
    limits = subject.spec.limits
    width, height = parse_size(arguments.size) if arguments.size else (limits.width.opt, limits.height.opt)
    subject.grid(width, height)
    dtype, device = _dtype(arguments.dtype, subject), _device(arguments.device)
    backbone = subject.network(BACKBONE)
    return Plan(
        backbone=backbone,
        student=subject.student.parents,
        sigmas=subject.sigmas(),
        prompts=read_prompts(arguments.prompts or default_prompts(subject.spec.name), arguments.num),
        width=width,
        height=height,
        method=Method(arguments.method),
        percentile=arguments.percentile,
        dtype=dtype,
        device=device,
        placement=choose_placement(backbone, dtype, device),
        batch=arguments.batch,
    )


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of ``WIDTHxHEIGHT``. Raises CalibrationError."""
    from export.errors import CalibrationError

    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise CalibrationError(f"--size {text!r} is not understood; write WIDTHxHEIGHT in pixels, such as 1024x1024")
    return int(width), int(height)


def _dtype(text: str | None, subject: Subject):  # type: ignore[no-untyped-def]
    import torch

    from export.errors import CalibrationError

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if text is None:
        return subject.default_dtype()
    if text not in known:
        raise CalibrationError(f"--dtype {text} is unknown; allowed: {', '.join(known)}")
    return known[text]


def _device(text: str):  # type: ignore[no-untyped-def]
    import torch

    from export.errors import CalibrationError

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise CalibrationError(f"--device {text} is unknown; allowed: cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise CalibrationError(f"--device {text} is not supported; allowed: cpu, cuda, cuda:N")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise CalibrationError(f"--device {text}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


def _check_out(out: Path) -> None:
    """Raise ExportError where the file could not be written: a long run must not end so."""
    from export.errors import CalibrationError
    from export.folders.places import check_place

    check_place(out.parent, "--out", shown=out)
    if out.is_dir():
        raise CalibrationError(f"cannot write {out}: it is a folder; give --out the name of a file")


if __name__ == "__main__":
    sys.exit(run(main))
