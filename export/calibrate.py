"""``python -m export.calibrate``: measure how large a student's activations become, for ``build --precision fp8``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.folders.places import check_out_file
from export.sources.models import choose
from export.sources.options import add_prompt_options, add_source_options, command, source_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from export.quality.measure import Run
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
    from export.quality.load import describe, expected_load
    from export.quality.measure import measure
    from export.students.subject import open_subject
    from export.terminal import hush_libraries, prompts, reading

    check_out_file(arguments.out)
    hush_libraries()
    console = Console(stderr=True)
    subject = open_subject(spec, arguments.base, arguments.adapter, arguments.lora, arguments.coverage)
    run_of = _run(arguments, subject)
    needed, free = expected_load(subject, run_of)
    console.print(describe(run_of, needed), highlight=False, soft_wrap=True)
    needed.check(free, "use a smaller --batch or --size, or fewer prompts with --num")
    with reading(console) as report:
        subject = subject.digested(report=report)
    run_of = replace(run_of, student=subject.student.parents)
    with prompts(console) as report:
        prompted = subject.prompted(run_of.prompts, run_of.width, run_of.height, run_of.dtype, run_of.device, report)
        calibration = measure(run_of, prompted, arguments.workdir, partial(report, "student"))
    write_calibration(calibration, arguments.out)
    sys.stdout.write(f"{arguments.out}\n")
    console.print(
        f"{len(calibration.amax)} layers over {len(run_of.prompts)} prompts; use it with: "
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
    add_prompt_options(parser)
    parser.add_argument("--method", default="amax", help="amax, percentile or mse (default: amax)")
    parser.add_argument("--percentile", type=float, default=99.99, help="for that method (default: 99.99)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--dtype", help="float32 or bfloat16 (default: float32 for a small student, else bfloat16)")
    parser.add_argument("--batch", type=int, default=4, help="prompts a call (default: 4)")
    parser.add_argument("--out", type=Path, required=True, help="calibration file to write")
    parser.add_argument("--workdir", type=Path, default=WORKDIR, help=f"keeps an unfinished run (default: {WORKDIR})")
    return parser


def _run(arguments: Namespace, subject: Subject) -> Run:
    """What the arguments ask for. Raises CalibrationError, ExportError."""
    from export.errors import CalibrationError
    from export.fp8.observers import Method
    from export.networks.streaming import choose_placement
    from export.quality.measure import Run
    from export.students.prompts import default_prompts, read_prompts

    if arguments.method not in set(Method):
        raise CalibrationError(f"--method {arguments.method} is unknown; allowed: {', '.join(Method)}")
    if not 0.0 < arguments.percentile <= 100.0:
        raise CalibrationError(f"--percentile is {arguments.percentile}; it must be above 0 and at most 100")
    if arguments.batch < 1:
        raise CalibrationError(f"--batch is {arguments.batch}; it must be 1 or more")
    width, height = subject.size(arguments.size)
    dtype, device = _dtype(arguments.dtype, subject), _device(arguments.device)
    backbone = subject.whole
    return Run(
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


if __name__ == "__main__":
    sys.exit(run(main))
