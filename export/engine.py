"""``python -m export.engine``: from a bundle of ONNX networks to a bundle of TensorRT plans."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.bundle import open_bundle
from engines.locate import BUILT_IN, BundleName
from export.folders.locks import alone
from export.folders.places import check_out
from export.tensorrt.build import DEFAULT_OPT_LEVEL
from export.tensorrt.errors import EngineError
from export.tensorrt.estimate import PlanEstimate, check_fit
from export.tensorrt.plans import Setup, build_plans, plan_manifest, write_plans
from export.tensorrt.profiles import choose_shapes
from export.tensorrt.setup import bundle_sources, prepare, total_estimate, weight_sizes
from export.tensorrt.targets import DATA_CENTRE, RTX, TARGETS
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from rich.console import Console

    from engines.bundle import Bundle
    from export.tensorrt.build import PlanReport
    from export.tensorrt.plans import PlansReport
    from export.tensorrt.progress import Progress

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

    from export.tensorrt.table import report_table

    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    sources = bundle_sources(bundle)
    shapes = choose_shapes(manifest.limits, arguments.resolutions, arguments.batch, arguments.text_tokens)
    timing = arguments.workdir / "timing"
    setup = prepare(arguments.target, manifest.precision, shapes, timing, arguments.flavour, arguments.opt_level)
    out = arguments.out or BUILT_IN / str(BundleName(manifest.model, manifest.precision, setup.target.name))
    work = arguments.workdir
    _check_out(out, bundle)
    console = Console(stderr=True)
    needed = total_estimate(manifest, weight_sizes(manifest), setup)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    say(_describe(setup, needed))

    with alone(work, lambda: check_fit(needed, work), say):
        with _progress(console, list(manifest.networks)) as report:
            reports = build_plans(manifest, sources, work, setup, report)
        tokenizers = {tokenizer.file: bundle.read(tokenizer.file) for tokenizer in manifest.tokenizers.values()}
        written = write_plans(out, plan_manifest(manifest, setup, reports, sources), tokenizers, reports)
    console.print(report_table(reports))
    sys.stdout.write(json.dumps(_summary(written, reports), sort_keys=True) + "\n")
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
    parser.add_argument("--flavour", help=f"{RTX} or {DATA_CENTRE} (default: what the target takes and is installed)")
    parser.add_argument("--resolutions", help="pixels, the usual one first: 1024x1024,768x1344 (default: the model's)")
    parser.add_argument("--batch", help="images a call: 1 or 1-4 (default: the model's)")
    parser.add_argument("--text-tokens", help="text tokens: 512 or 1-512 (default: the model's)")
    parser.add_argument(
        "--opt-level",
        type=int,
        default=DEFAULT_OPT_LEVEL,
        help=f"0 (fast build) to 5 (fast plan) (default: {DEFAULT_OPT_LEVEL})",
    )
    parser.add_argument("--out", type=Path, help="bundle to write (default: engines/bundles/MODEL-PRECISION-TARGET)")
    parser.add_argument(
        "--workdir", type=Path, default=WORKDIR, help=f"keeps finished plans; one build at a time (default: {WORKDIR})"
    )
    return parser


def _check_out(out: Path, bundle: Bundle) -> None:
    """Raise ExportError unless ``out`` is free, empty, or another bundle than the one that is read."""
    if out.exists() and out.resolve() == bundle.root:
        raise EngineError(f"--out {out} is the bundle that is read; choose another")
    check_out(out)


def _describe(setup: Setup, needed: PlanEstimate) -> str:
    time = "" if needed.seconds is None else f", some {needed.seconds:,.0f} s on two cores"
    return (
        f"{setup.toolkit.flavour} {setup.toolkit.version} for {', '.join(setup.target.capabilities)}: needs about "
        f"{needed.memory / 1e9:,.1f} GB of memory and {needed.disk / 1e9:,.1f} GB of disk{time}"
    )


def _summary(bundle: Bundle, reports: Sequence[PlanReport]) -> dict[str, Any]:
    first = reports[0]
    return {
        "bundle": str(bundle.root),
        "digest": bundle.manifest.digest,
        "flavour": first.flavour,
        "version": first.version,
        "capabilities": list(first.capabilities),
        "opt_level": first.opt_level,
        "plans": {report.network: _plan(report) for report in reports},
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


@contextmanager
def _progress(console: Console, networks: Sequence[str]) -> Iterator[PlansReport]:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks = {name: bars.add_task(name, start=False, total=1.0, note="") for name in networks}

        def report(name: str, progress: Progress) -> None:
            task = tasks[name]
            if not bars.tasks[task].started:
                bars.start_task(task)
            bars.update(task, completed=progress.fraction, note=progress.phase)

        yield report


if __name__ == "__main__":
    sys.exit(run(main))
