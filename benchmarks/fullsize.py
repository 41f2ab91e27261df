"""The export and the build at true size: ``python benchmarks/fullsize.py`` (``make fullsize``).

With synthetic, random weights of the true shapes, on a machine without a GPU:

- flux: a FLUX.1-dev base and a released-format adapter of rank 256 -> merged FP8 ONNX -> TensorRT-RTX plan for sm120;
- qwen: the same for Qwen-Image, up to the FP8 ONNX;
- graphs: every network of both models traced at true size, without weights.

Each step is a process of its own, whose time, memory and disk are measured from outside. The parts run one after the
other, print what they need first and reject early, and remove what they made. Prints a table, then one line of JSON,
and keeps the figures in ``benchmarks/fullsize.json`` (those of parts that were not run stay).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # In place of this folder, in which the package ``fullsize`` would hide this file.

from benchmarks.fullsize.graphs import GraphFacts, graph_facts  # noqa: E402
from benchmarks.fullsize.machine import check, describe  # noqa: E402
from benchmarks.fullsize.measure import MeasureError, disk_bytes, measure  # noqa: E402
from benchmarks.fullsize.steps import GIB, PARTS, Part, Step  # noqa: E402
from foundation.cli import ArgumentParser, run  # noqa: E402
from foundation.files import atomic_file  # noqa: E402

WORK = ROOT / ".work" / "fullsize"
REPORT = ROOT / "benchmarks" / "fullsize.json"
OVER_LIMIT = 1
"""Exit code where a step needed more memory than it may."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print and keep the figures. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/fullsize.py", description="Measure export and build at true size.")
    parser.add_argument("--work", type=Path, default=WORK, help="where to work (default: .work/fullsize)")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument(
        "--report", type=Path, default=REPORT, help="where the figures are kept (default: benchmarks/fullsize.json)"
    )
    parser.add_argument("--keep", action="store_true", help="remove nothing, and leave out steps whose result is there")
    arguments = parser.parse_args(argv)
    parts = list(PARTS.values()) if arguments.part == "all" else [PARTS[arguments.part]]
    for part in parts:
        print(f"{part.name}: needs {part.disk / 1e9:.0f} GB of disk and {part.memory / GIB:.0f} GiB of memory")
    for part in parts:
        check(part, arguments.work)
    figures = _read(arguments.report)
    for part in parts:
        figures["parts"][part.name] = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": describe(),
            "steps": _run(part, arguments.work / part.name, arguments.keep, figures["parts"].get(part.name)),
        }
        with atomic_file(arguments.report) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
    rows = [row for name in PARTS if name in figures["parts"] for row in figures["parts"][name]["steps"]]
    print(_table(rows))
    print(json.dumps(figures))
    over = [row["title"] for row in rows if row["memory_limit"] and row["peak_anonymous"] > row["memory_limit"]]
    for title in over:
        print(f"over its limit of memory: {title}", file=sys.stderr)
    return OVER_LIMIT if over else 0


def _run(part: Part, folder: Path, keep: bool, earlier: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Run a part's steps; returns a row a step. The folder is removed in the end, whatever happens, unless ``keep``.

    What the commands said stays in ``logs`` beside it.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    known = {row["title"]: row for row in earlier["steps"]} if earlier else {}
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for step in part.steps:
            if keep and step.title in known and any(folder.glob(step.result)):
                print(f"{step.title}: its result is there; keeping the figures of {earlier and earlier['date']}")
                rows.append(known[step.title])
                continue
            print(f"{step.title} ...", flush=True)
            command = [sys.executable, *(argument.format(folder=folder) for argument in step.command)]
            log = folder.parent / "logs" / f"{part.name}-{part.steps.index(step)}.log"
            measured = measure(command, ROOT, log, folder, environment)
            rows.append(_row(step, folder, asdict(measured)))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def _row(step: Step, folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    results = sorted(folder.glob(step.result))
    if not results:
        raise MeasureError(f"{step.title}: there is no {step.result} in {folder} although the command succeeded")
    facts = _facts(step, results) if step.graph else None
    return {
        "title": step.title,
        **measured,
        "memory_limit": step.memory_limit,
        "result_bytes": sum(map(disk_bytes, results)),
        "nodes": facts and facts.nodes,
        "weights": facts and facts.weights,
        "linears": facts and facts.linears,
        "fp8_linear_share": facts and facts.fp8_linear_share,
        "fp8_weight_share": facts and facts.fp8_weight_share,
    }


def _facts(step: Step, results: Sequence[Path]) -> GraphFacts:
    graphs = [path for result in results for path in (result.glob(step.graph) if result.is_dir() else [result])]
    if len(graphs) != 1:
        raise MeasureError(f"{step.title}: made {len(graphs)} graphs that match {step.graph}, 1 is expected")
    return graph_facts(graphs[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        figures = {"parts": {}}
    return figures


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("step", "wall s", "cpu s", "anon GiB", "rss GiB", "disk", "written", "result", "nodes", "fp8")
    lines = [head]
    for row in rows:
        share = row["fp8_linear_share"]
        lines.append(
            (
                row["title"],
                f"{row['wall_s']:.0f}",
                f"{row['cpu_s']:.0f}",
                f"{row['peak_anonymous'] / GIB:.2f}",
                f"{row['peak_rss'] / GIB:.2f}",
                _size(row["peak_disk"]),
                _size(row["written"]),
                _size(row["result_bytes"]),
                f"{row['nodes']:,}" if row["nodes"] else "",
                f"{share:.0%} of linears, {row['fp8_weight_share']:.0%} of weights" if share else "",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(w) if i in (0, len(head) - 1) else text.rjust(w) for i, (text, w) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(run(main))
