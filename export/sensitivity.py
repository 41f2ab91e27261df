"""``python -m export.sensitivity``: which layers FP8 hurts, each quantised alone, and which to keep high."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from export.sources.models import choose
from export.sources.options import add_prompt_options, add_source_options, command, source_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from rich.table import Table

    from export.quality.layer_errors import LayerErrors

_EXAMPLES = """examples:
  python -m export.sensitivity --model tiny --calibration calibration.json
  python -m export.sensitivity --model tiny --calibration calibration.json --json errors.json --plot errors.png
"""
_SHOWN = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print two tables, worst first, and a suggestion."""
    arguments = _parser().parse_args(argv)
    spec = choose(arguments.model)
    import torch
    from rich.console import Console

    from export.errors import CalibrationError
    from export.fp8.calibration import check_student, read_calibration
    from export.quality.layer_errors import layer_errors, plot, suggest, write_errors
    from export.students.prompts import default_prompts, read_prompts
    from export.students.subject import open_subject
    from export.terminal import hush_libraries, reading
    from export.terminal import prompts as bars

    hush_libraries()
    console = Console(stderr=True)
    path = arguments.calibration or spec.calibration
    how = "measure them: " + command("calibrate", [*source_options(arguments), "--out", "calibration.json"])
    if path is None:
        raise CalibrationError(f"give --calibration FILE, the scales of this student; {how}")
    calibration = read_calibration(path, how)
    prompts = read_prompts(arguments.prompts or default_prompts(spec.name), arguments.num)
    subject = open_subject(spec, arguments.base, arguments.adapter, arguments.lora, arguments.coverage)
    width, height = subject.size(arguments.size)
    check_student(calibration, subject.student.parents, path, how)
    with reading(console) as report:
        subject = subject.digested(
            report=report, check=lambda student: check_student(calibration, student.parents, path, how)
        )
    device, dtype = torch.device("cpu"), torch.float32
    with bars(console) as report:
        prompted = subject.prompted(prompts, width, height, dtype, device, report)
        found = layer_errors(
            subject.whole, calibration, prompted, subject.sigmas(),
            partial(report, "layers"),
        )  # fmt: skip
    output = Console()
    for title, errors in (("block", found.blocks), ("layer", found.layers)):
        output.print(_table(title, errors))
    kept = suggest(found, arguments.target)
    console.print(_advice(found, kept, arguments.target), highlight=False, soft_wrap=True)
    if arguments.json is not None:
        write_errors(found, kept, arguments.target, arguments.json)
    if arguments.plot is not None:
        plot(found, arguments.plot)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export.sensitivity",
        description="Quantise one layer (one block) at a time to FP8, simulated in float32 torch, and measure how\n"
        "much the output field changes: relative L2 of its displacement over a segment, worst of the segments, from\n"
        "noise that calibration did not see.",
        epilog=_EXAMPLES,
    )
    add_source_options(parser)
    parser.add_argument("--calibration", type=Path, help="made by python -m export.calibrate (default: the model's)")
    add_prompt_options(parser, 16)
    parser.add_argument(
        "--target", type=float, default=0.03, help="error to stay under, for the advice (default: 0.03)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the layers' errors as bars to this PNG")
    return parser


def _table(title: str, errors: Sequence[tuple[str, float]]) -> Table:
    from rich.table import Table

    table = Table(title=f"error when only this {title} is in FP8 (relative L2)")
    table.add_column(title)
    table.add_column("error", justify="right")
    for name, error in errors[:_SHOWN]:
        table.add_row(name, f"{error:.2%}")
    if len(errors) > _SHOWN:
        table.add_row(f"... {len(errors) - _SHOWN} more", "")
    return table


def _advice(found: LayerErrors, kept: Sequence[str], target: float) -> str:
    total = f"all {len(found.layers)} layers together: {found.together:.2%}"
    if not kept:
        return f"{total}, within {target:.0%}: nothing need be kept high"
    options = " ".join(f"--keep-high '{name}'" for name in kept)
    return f"{total}; to stay within {target:.0%}, try {options}"


if __name__ == "__main__":
    sys.exit(run(main))
