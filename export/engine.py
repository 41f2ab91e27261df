"""``python -m export.engine``: from a bundle of ONNX networks to a bundle of TensorRT plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.bundle import open_bundle
from engines.locate import BUILT_IN, BundleName
from engines.manifest import source_digest
from engines.memory.card import CardMemory, of_bundle
from export.errors import EngineError
from export.folders.locks import alone
from export.folders.places import Needs, check_out, check_place, one_after_the_other
from export.networks.base import BACKBONE
from export.precision import Precision
from export.sources.options import add_plan_options
from export.tensorrt.estimate import HIGH_SHARE, PLANS_ADVICE, estimate
from export.tensorrt.plans import Setup, Source, build_plans, plan_manifest, prepare, write_plans
from export.tensorrt.profiles import choose_plan_shapes
from export.tensorrt.targets import TARGETS
from export.tensorrt.trials import if_here, not_measured
from export.terminal import stages
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.schema import Manifest, ParityResult
    from export.reporting import Report
    from export.tensorrt.build import PlanReport

WORKDIR = Path(".work") / "engine"

_EXAMPLES = """examples:
  python -m export.engine engines/bundles/flux-fp8-onnx --target sm120
  python -m export.engine engines/bundles/qwen-bf16-onnx --target rtx --resolutions 1328x1328,928x1664 --batch 1-2
  python -m export.engine engines/bundles/flux-fp16-onnx --target sm90 --resolutions 1024x1024 --opt-level 5
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the plans of one bundle; prints an estimate, progress, a table and, on standard output, a JSON line."""
    arguments = _parser().parse_args(argv)
    from rich.console import Console

    from export.assembling.parity import parity_table
    from export.tensorrt.report import report_table

    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    sources = _sources(bundle)
    shapes = choose_plan_shapes(manifest.limits, arguments.resolutions, arguments.batch, arguments.text_tokens)
    timing = arguments.workdir / "timing"
    setup = prepare(arguments.target, manifest.precision, shapes, timing, arguments.flavour, arguments.opt_level)
    out = arguments.out or BUILT_IN / str(BundleName(manifest.model, manifest.precision, setup.target.name))
    work = arguments.workdir
    if out.exists() and out.resolve() == bundle.root:
        raise EngineError(f"--out {out} is the bundle that is read; choose another")
    check_out(out)
    console = Console(stderr=True)
    needed = _needs(bundle, setup)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(setup.describe(needed))

    def check() -> None:
        needed.check(advice=PLANS_ADVICE)
        check_place(work, "--workdir", needed.disk)

    with alone(work, check, say):
        with stages(console) as report:
            reports = build_plans(manifest, sources, work, setup, report)
            described = plan_manifest(manifest, setup, reports, sources)
            on_gpu, not_run = if_here(setup.target.capabilities, lambda: _on_gpu(bundle, described, reports, report))
        described = msgspec.structs.replace(described, parity=[*described.parity, *on_gpu])
        tokenizers = {tokenizer.file: bundle.read(tokenizer.file) for tokenizer in manifest.tokenizers.values()}
        written = write_plans(out, described, tokenizers, reports)
    console.print(report_table(reports))
    if on_gpu:
        console.print(parity_table(on_gpu, "ONNX"))
        if others := [name for name in manifest.networks if name not in {result.network for result in on_gpu}]:
            say(f"run, and too large to be compared on this machine's CPU: {', '.join(others)}")
    if not_run:
        say(not_measured(not_run, out, arguments.bundle))
    memory = of_bundle(written.manifest)
    if memory is not None:
        say("\n".join(memory.lines()))
    sys.stdout.write(json.dumps(_summary(written, reports, memory), sort_keys=True) + "\n")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export.engine",
        description="Build TensorRT plans from a bundle of ONNX networks and write them as a bundle of their own.\n"
        "TensorRT for RTX builds on any machine, one without a GPU included. An interrupted build resumes\n"
        "with the plans that are complete.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of a bundle with target onnx")
    parser.add_argument("--target", required=True, help=f"GPUs to build for, one of: {', '.join(TARGETS)}")
    add_plan_options(parser)
    parser.add_argument("--out", type=Path, help="bundle to write (default: engines/bundles/MODEL-PRECISION-TARGET)")
    parser.add_argument(
        "--workdir", type=Path, default=WORKDIR, help=f"keeps finished plans; one build at a time (default: {WORKDIR})"
    )
    return parser


def _sources(bundle: Bundle) -> dict[str, Source]:
    """The ONNX networks of an opened bundle. Raises EngineError where it holds plans already."""
    manifest = bundle.manifest
    if manifest.engine is not None:
        raise EngineError(
            f"{bundle.root} holds plans for {manifest.target}, and plans are built from ONNX: give the bundle "
            "with target onnx"
        )
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        name: Source(
            bundle.root / network.file, source_digest({path: digests[path] for path in (network.file, *network.data)})
        )
        for name, network in manifest.networks.items()
    }


def _needs(bundle: Bundle, setup: Setup) -> Needs:
    """What all plans take. A network's files, its data included, are weights but for little."""
    manifest, found = bundle.manifest, []
    sizes = {entry.path: entry.size for entry in manifest.files}
    for name, network in manifest.networks.items():
        size = sum(sizes[path] for path in (network.file, *network.data))
        fp8 = name == BACKBONE and manifest.precision == Precision.FP8
        high = int(HIGH_SHARE * size) if fp8 else size
        found.append(estimate(high, size - high, setup.target, setup.toolkit.flavour))
    return one_after_the_other(found)


def _on_gpu(source: Bundle, manifest: Manifest, plans: Sequence[PlanReport], report: Report) -> list[ParityResult]:
    """Parity of the plans with the ONNX networks, on the GPU of this machine. Raises NotRunError, ParityError."""
    from export.assembling.device_parity import cases_of_bundle, measure, plan_file

    cases = cases_of_bundle(source, manifest, {plan.network: plan_file(plan) for plan in plans})
    return measure(manifest, cases, report, source.root)


def _summary(bundle: Bundle, reports: Sequence[PlanReport], memory: CardMemory | None) -> dict[str, Any]:
    first = reports[0]
    return {
        "bundle": str(bundle.root),
        "digest": bundle.manifest.digest,
        "flavour": first.flavour,
        "version": first.version,
        "capabilities": list(first.capabilities),
        "opt_level": first.opt_level,
        "memory": memory and memory.summary(),
        "plans": {report.network: _plan(report) for report in reports},
        "parity_on_gpu": [msgspec.to_builtins(result) for result in bundle.manifest.parity if result.device],
    }


def _plan(report: PlanReport) -> dict[str, Any]:
    layers = report.layers
    return {
        "bytes": report.size,
        "sha256": report.sha256,
        "seconds": round(report.seconds, 2),
        "warnings": report.warnings,
        "counted_by": layers.source,
        "layers": dict(layers.precisions),
        "products": layers.gemms.count,
        "products_fp8": layers.gemms.fp8,
        "weights_fp8": round(layers.gemms.fp8_share, 4),
        "attention": layers.attention,
        "attention_one_kernel": layers.attention_fused,
    }


if __name__ == "__main__":
    sys.exit(run(main))
