"""``python -m export.build``: from a base model and an adapter to a verified bundle."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engines.locate import BUILT_IN, BundleName
from export.precision import Precision
from export.sources.models import ModelSpec, choose, choose_precision
from export.sources.options import add_source_options, source_options
from export.students.request import Attention
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from export.assembling.estimate import Estimate
    from export.students.request import Request, Wanted

WORKDIR = Path(".work") / "export"

_EXAMPLES = """examples:
  the embedded model, for a CPU:
    python -m export.build --model tiny
  FLUX.1-dev in FP8 for RTX cards (Ada and Blackwell), on any machine, with an own style LoRA:
    python -m export.calibrate --model flux --out flux.json
    python -m export.build --model flux --precision fp8 --target rtx --calibration flux.json \\
        --lora my-style.safetensors:0.8
  FLUX.1-dev in FP8 as ONNX, to build the engine on the H100 that will run it:
    python -m export.build --model flux --precision fp8 --target onnx --calibration flux.json
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

    from export.assembling.bundle import Finished, Plans, build
    from export.assembling.estimate import check_fit, estimate
    from export.assembling.parity import parity_table
    from export.folders.locks import alone
    from export.students.request import check_request, inspect_sources, read_sources
    from export.tensorrt.table import report_table
    from export.terminal import hush_libraries, reading, stages

    console = Console(stderr=True)
    wanted = _wanted(arguments, spec, precision)
    check_request(wanted)
    plans = Plans.prepare(wanted, arguments.flavour, arguments.opt_level) if wanted.needs_plans else None
    request = _request(wanted, arguments)
    hush_libraries()
    headers = inspect_sources(request)
    needed = estimate(headers)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(_describe(request, needed))
    if plans is not None:
        say(plans.describe(plans.needs(headers)))

    def check() -> None:
        check_fit(headers, needed)
        if plans is not None:
            plans.check_fit(headers)

    with alone(request.workdir, check, say):
        with reading(console) as report_reading:
            sources = read_sources(headers, report_reading)
        if sources.scales_of_plain:
            say("scales: those of the student without its style LoRAs, which serve it as well up to a scale of about 1")
        if sources.calibration is not None and sources.calibration.synthetic:
            say("the calibration is synthetic: good for sizes and times, not for images")
        with stages(console) as report:
            finished: Finished = build(sources, plans, report)
    console.print(parity_table([result for network in finished.networks for result in network.record.parity]))
    if finished.plans:
        console.print(report_table(finished.plans))
    for path in finished.paths:
        sys.stdout.write(f"{path}\n")
    console.print(f"{finished.name}: {finished.files} files, {finished.size:,} bytes", highlight=False, soft_wrap=True)
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
        "--precision", help=f"one of: {', '.join(Precision)} (default: the model's; tiny: fp32, else bf16)"
    )
    parser.add_argument(
        "--target",
        help="what runs the bundle: cpu (ONNX Runtime), onnx (engines are built from it elsewhere), sm80, sm86, sm89, "
        "sm90, sm100, sm120, or rtx (sm89 and sm120 in one); (default: the model's; tiny: cpu, else onnx)",
    )
    parser.add_argument(
        "--calibration", type=Path, help="activation scales for fp8, made by python -m export.calibrate"
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
        help="greatest relative L2 error that fp8 may cause in latent and image, where they can be generated here "
        "(default: 0.03)",
    )
    parser.add_argument("--resolutions", help="pixels, the usual one first: 1024x1024,768x1344 (default: the model's)")
    parser.add_argument("--batch", help="images a call: 1 or 1-4 (default: the model's)")
    parser.add_argument("--text-tokens", help="text tokens: 512 or 1-512 (default: the model's)")
    parser.add_argument("--flavour", help="tensorrt or tensorrt-rtx (default: what the target takes and is installed)")
    parser.add_argument("--opt-level", type=int, default=3, help="0 (fast build) to 5 (fast engine) (default: 3)")
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
    parser.add_argument("--json", action="store_true", help="print what was built as one JSON line as well")
    return parser


def _wanted(arguments: Namespace, spec: ModelSpec, precision: Precision) -> Wanted:
    """What the arguments ask for. Raises an ArcFlowError."""
    from engines.schema import ONNX_TARGETS
    from export.errors import ExportError
    from export.students.request import Wanted
    from export.tensorrt.profiles import choose_shapes
    from export.tensorrt.targets import TARGETS

    target = arguments.target or spec.target
    if target not in (*ONNX_TARGETS, *TARGETS):
        raise ExportError(f"--target {target} is unknown; allowed: {', '.join((*ONNX_TARGETS, *TARGETS))}")
    return Wanted(
        spec=spec,
        precision=precision,
        target=target,
        out=arguments.out or BUILT_IN / str(BundleName(spec.name, precision, target)),
        workdir=arguments.workdir,
        shapes=choose_shapes(spec.limits, arguments.resolutions, arguments.batch, arguments.text_tokens),
        calibration=arguments.calibration or spec.calibration if precision is Precision.FP8 else arguments.calibration,
        keep_high=tuple(arguments.keep_high),
        only=tuple(arguments.only),
        attention=Attention(arguments.attention),
        gate=arguments.gate,
        coverage=arguments.coverage,
        typed=source_options(arguments),
    )


def _request(wanted: Wanted, arguments: Namespace) -> Request:
    """The same with its sources found: hub ids become folders, LoRAs are read. Raises an ArcFlowError."""
    from export.sources.hub import resolve_adapter, resolve_base
    from export.students.request import Request
    from export.weights.lora import parse_lora

    spec = wanted.spec
    return Request(
        **vars(wanted),
        base=resolve_base(arguments.base or spec.base, spec.architecture),
        adapter=resolve_adapter(arguments.adapter or spec.adapter),
        loras=tuple(parse_lora(text, spec.architecture) for text in arguments.lora),
    )


def _describe(request: Request, needed: Estimate) -> str:
    megabyte = 1 << 20
    return (
        f"{request.spec.name} in {request.precision} for {request.target}: needs about "
        f"{needed.memory / megabyte:,.0f} MiB of memory, {needed.work / megabyte:,.0f} MiB of disk to work in and "
        f"{needed.bundle / megabyte:,.0f} MiB for the bundle, and about {max(needed.seconds / 60, 1):,.0f} min"
    )


if __name__ == "__main__":
    sys.exit(run(main))
