"""``python -m export.build``: from a base model and an adapter to a verified bundle."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from engines.locate import BUILT_IN, BundleName
from export.assembling.wanted import Attention, Wanted
from export.precision import Precision
from export.sources.models import ModelSpec, choose, choose_precision
from export.sources.options import add_plan_options, add_source_options, source_options
from foundation.cli import ArgumentParser, run

WORKDIR = Path(".work") / "export"

_EXAMPLES = """examples:
  the embedded model, for a CPU:
    python -m export.build --model tiny
  FLUX.1-dev in FP8 for the GPU of this machine, with an own style LoRA:
    python -m export.build --model flux --precision fp8 --lora my-style.safetensors:0.8
  FLUX.1-dev in FP8 for RTX cards (Ada and Blackwell), on any machine:
    python -m export.build --model flux --precision fp8 --target rtx
  FLUX.1-dev in FP8 as ONNX, to build the engine on the H100 that will run it:
    python -m export.build --model flux --precision fp8 --target onnx
    python -m export.engine engines/bundles/flux-fp8-onnx --target sm90
  Qwen-Image in BF16 from folders, offline, for one image size:
    python -m export.build --model qwen --precision bf16 --target sm120 --base /models/Qwen-Image \\
        --adapter /models/arcflow-qwen-2steps --resolutions 1328x1328 --batch 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build one bundle; prints an estimate, progress, the parity table and the bundle's folder."""
    arguments = _parser().parse_args(argv)
    spec = choose(arguments.model)
    precision = choose_precision(arguments.precision or spec.precision)
    from rich.console import Console

    from export.assembling.bundle import build
    from export.assembling.estimate import check_fit, estimate, estimate_card, estimate_plans, sizes_table
    from export.assembling.gate import choose_gate_run, hold
    from export.assembling.inputs import inspect
    from export.assembling.parity import parity_table
    from export.folders.locks import alone
    from export.quality.load import describe
    from export.quality.own import choose_run
    from export.students.subject import open_subject
    from export.tensorrt.plans import prepare
    from export.tensorrt.report import report_table
    from export.tensorrt.trials import not_measured
    from export.terminal import hush_libraries, prompts, reading, stages

    console = Console(stderr=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    wanted = _wanted(arguments, spec, precision, _target(arguments, spec, say))
    wanted.check()
    setup = None
    if wanted.needs_plans:
        timing = wanted.workdir / "timing"
        setup = prepare(wanted.target, precision, wanted.shapes, timing, arguments.flavour, arguments.opt_level)
    hush_libraries()
    subject = open_subject(spec, arguments.base, arguments.adapter, arguments.lora, arguments.coverage)
    inputs = inspect(wanted, subject)
    gate = choose_gate_run(inputs)
    needed, needed_by_plans = estimate(inputs, gate), estimate_plans(inputs, setup) if setup is not None else None
    own = choose_run(subject) if inputs.lacks_scales else None
    say(f"{spec.name} in {precision} for {wanted.target}: about {needed}")
    if setup is not None and needed_by_plans is not None:
        say(setup.describe(needed_by_plans))
    if own is not None:
        where = f"unless {wanted.workdir} has the scales"
        say(f"no --calibration is given: {where}, they are measured: {describe(own.run, own.needed)}")
    if gate is not None:
        say(f"gate: what fp8 changes is measured: {describe(gate.run, gate.needed)}")
    console.print(sizes_table(inputs))
    card = estimate_card(inputs)
    if card is not None:
        say("\n".join(card.lines()))

    if arguments.dry_run:
        if arguments.json:
            sys.stdout.write(json.dumps({"memory": card and card.summary()}, sort_keys=True) + "\n")
        check_fit(inputs, needed, needed_by_plans)
        if own is not None:
            own.check()
        return 0

    with alone(wanted.workdir, lambda: check_fit(inputs, needed, needed_by_plans), say):
        with reading(console) as report:
            inputs = inputs.digested(report)
        if own is not None:
            with prompts(console) as report:
                scales = own.scales(inputs.subject, wanted.workdir, report)
            say(f"scales: {scales}; a later build of this student uses them again")
            inputs = inspect(replace(wanted, calibration=scales), inputs.subject).digested()
        if inputs.scales_of_plain:
            say("scales: those of the student without its style LoRAs, which serve it as well up to a scale of about 1")
        if inputs.fp8 is not None and inputs.fp8.calibration.synthetic:
            say("the calibration is synthetic: good for sizes and times, not for images")
        if gate is not None:
            with prompts(console) as report:
                inputs = hold(inputs, gate, report)
        with stages(console) as report:
            finished = build(inputs, setup, report)
    console.print(parity_table(finished.parity))
    if finished.plans:
        console.print(report_table(finished.plans))
    if finished.not_run:
        say(not_measured(finished.not_run, wanted.out))
    for path in finished.paths:
        sys.stdout.write(f"{path}\n")
    size = sum(finished.sizes.values())
    say(f"{finished.name}: {len(finished.sizes)} files, {size:,} bytes")
    if finished.memory is not None:
        say("\n".join(finished.memory.lines()))
    if arguments.json:
        sys.stdout.write(json.dumps(finished.summary(), sort_keys=True) + "\n")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export.build",
        description="Merge an adapter into its base model, export every network to ONNX, check each against the\n"
        "original, build TensorRT plans where the target asks for them, and write a verified bundle.\n"
        "Needs no GPU, and memory for a small part of the model only. An interrupted build resumes where it stopped.",
        epilog=_EXAMPLES,
    )
    add_source_options(parser)
    parser.add_argument(
        "--precision", help=f"one of: {', '.join(Precision)} (default: the model's; tiny: fp16, else bf16)"
    )
    parser.add_argument(
        "--target",
        help="what runs the bundle: cpu (ONNX Runtime), onnx (engines are built from it elsewhere), sm80, sm86, sm89, "
        "sm90, sm100, sm120, or rtx (sm89 and sm120 in one); (default: of tiny cpu; else this machine's GPU, if an "
        "installed TensorRT builds for it, else onnx)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="activation scales for fp8, made by python -m export.calibrate (default: the model's own; else they are "
        "measured first, on the GPU if there is one, and kept in --workdir)",
    )
    parser.add_argument(
        "--keep-high",
        action="append",
        default=[],
        metavar="PATTERN",
        help="layers that fp8 leaves alone, such as 'transformer_blocks.0.*'; may be given again",
    )
    parser.add_argument(
        "--attention",
        choices=[str(kind) for kind in Attention],
        default=str(Attention.MODEL),
        help="what fp8 does to attention: leave it in the model's type, or FP8 as well, which costs precision and in "
        "TensorRT for RTX 1.7 gains no time yet (default: model)",
    )
    parser.add_argument(
        "--gate",
        type=float,
        default=0.03,
        help="greatest relative L2 error that fp8 may cause in latent and image: it is measured, and the fewest layers "
        "are kept high that hold it (default: 0.03)",
    )
    parser.add_argument(
        "--max-nfe",
        type=int,
        metavar="N",
        help="the most evaluations that an image may have (default: 64; Qwen-Image, which keeps its modulation of each "
        "noise level: 8)",
    )
    add_plan_options(parser)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NETWORK", help="build this network alone, and no bundle"
    )
    parser.add_argument("--out", type=Path, help="bundle to write (default: engines/bundles/MODEL-PRECISION-TARGET)")
    parser.add_argument(
        "--workdir",
        type=Path,
        default=WORKDIR,
        help=f"keeps the stages' results; one build at a time (default: {WORKDIR})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be built, what it takes, and whether that is here"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print what was built as one JSON line as well; with --dry-run, what it would take of a GPU",
    )
    return parser


def _target(arguments: Namespace, spec: ModelSpec, say: Callable[[str], object]) -> str:
    """The target that was asked for, the model's own, or else this machine's; then why is said."""
    if arguments.target or spec.target:
        return str(arguments.target or spec.target)
    from export.tensorrt.flavours import own_target

    target, why = own_target(arguments.flavour)
    say(f"target {target}: {why}")
    return target


def _wanted(arguments: Namespace, spec: ModelSpec, precision: Precision, target: str) -> Wanted:
    """What the arguments ask for, with that target. Raises an ArcFlowError."""
    from engines.schema import ONNX_TARGETS
    from export.errors import ExportError
    from export.tensorrt.profiles import choose_plan_shapes, choose_shapes
    from export.tensorrt.targets import TARGETS

    calibration = arguments.calibration
    if precision is Precision.FP8 and calibration is None and arguments.base is arguments.adapter is None:
        calibration = spec.calibration  # Another base or adapter makes another student.
    if target not in (*ONNX_TARGETS, *TARGETS):
        raise ExportError(f"--target {target} is unknown; allowed: {', '.join((*ONNX_TARGETS, *TARGETS))}")
    shapes = (choose_plan_shapes if target in TARGETS else choose_shapes)(
        spec.limits, arguments.resolutions, arguments.batch, arguments.text_tokens
    )
    return Wanted(
        spec=spec,
        precision=precision,
        target=target,
        out=arguments.out or BUILT_IN / str(BundleName(spec.name, precision, target)),
        workdir=arguments.workdir,
        shapes=shapes,
        calibration=calibration,
        keep_high=tuple(arguments.keep_high),
        only=tuple(arguments.only),
        attention=Attention(arguments.attention),
        max_nfe=arguments.max_nfe,
        gate=arguments.gate,
        typed=source_options(arguments),
    )


if __name__ == "__main__":
    sys.exit(run(main))
