"""``python -m export.build``: from a base model and an adapter to a verified bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engines.locate import BUILT_IN
from engines.names import BundleName
from export.errors import ExportError
from export.models import MODELS, choose, choose_precision
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from export.stages import Estimate, Event, Report

WORKDIR = Path(".work") / "export"

_EXAMPLES = """examples:
  python -m export.build --model tiny --precision fp32 --target cpu
  python -m export.build --model tiny --adapter my-adapter --out my-bundles/tiny-fp32-cpu
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build one bundle; prints an estimate, progress, the parity table and the bundle's folder."""
    arguments = _parser().parse_args(argv)
    spec = choose(arguments.model)
    precision = choose_precision(arguments.precision)
    if spec.name != "tiny" or precision != "fp32" or arguments.target != "cpu":
        raise ExportError("only --model tiny --precision fp32 --target cpu can be built yet")
    from rich.console import Console

    from export.parity import parity_table
    from export.stages import Request, build, check_space, estimate, inspect_sources

    out = arguments.out or BUILT_IN / str(BundleName(spec.name, arguments.precision, arguments.target))
    request = Request(
        spec=spec,
        precision=arguments.precision,
        target=arguments.target,
        base=arguments.base or Path(spec.base),
        adapter=arguments.adapter or Path(spec.adapter),
        out=out,
        workdir=arguments.workdir,
    )
    _hush_libraries()
    sources = inspect_sources(request)
    needed = estimate(sources)
    console = Console(stderr=True)
    console.print(_describe(needed), highlight=False, soft_wrap=True)
    check_space(sources, needed)
    with _progress(console) as report:
        bundle = build(sources, report)
    console.print(parity_table(bundle.manifest.parity))
    size = sum(entry.size for entry in bundle.manifest.files)
    sys.stdout.write(f"{out}\n")
    console.print(f"{bundle.name}: {len(bundle.manifest.files)} files, {size:,} bytes", highlight=False, soft_wrap=True)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m export.build",
        description="Merge an adapter into its base model, export every network to ONNX, check each against the\n"
        "original, and write a verified bundle. An interrupted build continues with the complete stages.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--model", default="tiny", help=f"one of: {', '.join(MODELS)} (default: tiny)")
    parser.add_argument("--precision", default="fp32", help="of weights and arithmetic (default: fp32)")
    parser.add_argument("--target", default="cpu", help="what the bundle runs on (default: cpu)")
    parser.add_argument("--base", type=Path, help="FluxPipeline folder (default: models/MODEL/teacher)")
    parser.add_argument("--adapter", type=Path, help="adapter folder (default: models/MODEL/adapter)")
    parser.add_argument("--out", type=Path, help="bundle to write (default: engines/bundles/MODEL-PRECISION-TARGET)")
    parser.add_argument("--workdir", type=Path, default=WORKDIR, help=f"keeps the stages' results (default: {WORKDIR})")
    return parser


def _hush_libraries() -> None:
    """Turn off the progress bars that diffusers and transformers show for every folder they open."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _describe(needed: Estimate) -> str:
    megabyte = 1 << 20
    return (
        f"needs about {needed.memory / megabyte:,.0f} MiB of memory, {needed.work / megabyte:,.0f} MiB of disk to "
        f"work in and {needed.bundle / megabyte:,.0f} MiB for the bundle"
    )


@contextmanager
def _progress(console: object) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from export.stages import STAGES

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:  # type: ignore[arg-type]
        tasks = {stage: progress.add_task(stage, start=False, total=None, note="") for stage in STAGES}

        def report(event: Event) -> None:
            task = tasks[event.stage]
            if not progress.tasks[task].started:
                progress.start_task(task)
            progress.update(task, completed=event.done, total=event.total, note=event.note)

        yield report


if __name__ == "__main__":
    sys.exit(run(main))
