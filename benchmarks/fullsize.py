"""The export and the build at true size: ``python benchmarks/fullsize.py`` (``make fullsize``).

With synthetic, random weights of the true shapes, on a machine without a GPU:

- flux: a FLUX.1-dev base with every network and a released-format adapter of rank 256, then the command that a user
  types: calibration, FP8 ONNX of every network, TensorRT-RTX plans for sm120, a complete bundle;
- qwen: the same for Qwen-Image, in two commands, between which the base's largest network gives its room back;
- graphs: every network of both models traced at true size, without weights.

Each step is a process of its own, whose time, memory and disk are measured from outside, stage by stage of what it says
that it does. The parts run one after the
other, print what they need first and reject early, and remove what they made. Prints a table, then one line of JSON,
and keeps the figures in ``benchmarks/fullsize.json`` (those of parts that were not run stay).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # In place of this folder, in which the package ``fullsize`` would hide this file.

from benchmarks.fullsize.graphs import GRAPH_FACTS, graph_facts
from benchmarks.fullsize.measure import MeasureError, disk_bytes, measure
from benchmarks.fullsize.steps import GIB, PARTS, Part, Step, check
from benchmarks.fullsize.synthesise import hollow
from foundation.cli import ArgumentParser, run
from foundation.measuring import as_line, begin, keep, table

WORK = ROOT / ".work" / "fullsize"
REPORT = ROOT / "benchmarks" / "fullsize.json"
OVER_LIMIT = 1
"""Exit code where a step needed more memory than it may."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print and keep the figures. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/fullsize.py", description="Measure export and build at true size.")
    add = parser.add_argument
    add("--work", type=Path, default=WORK, help="where to work (default: .work/fullsize)")
    add("--part", choices=(*PARTS, "all"), default="all")
    add("--report", type=Path, default=REPORT, help="where the figures are kept (default: benchmarks/fullsize.json)")
    add("--keep", action="store_true", help="remove nothing, and leave out steps whose result is there")
    arguments = parser.parse_args(argv)
    parts = list(PARTS.values()) if arguments.part == "all" else [PARTS[arguments.part]]
    for part in parts:
        print(f"{part.name}: needs {part.disk / 1e9:.0f} GB of disk and {part.memory / GIB:.0f} GiB of memory")
    for part in parts:
        check(part, arguments.work)
    figures = _read(arguments.report)
    for part in parts:
        begun = begin(parser.prog, argv)
        steps = _run(part, arguments.work / part.name, arguments.keep, figures["parts"].get(part.name))
        figures["parts"][part.name] = {**begun, "steps": steps}
        keep(arguments.report, figures)
    rows = [row for name in PARTS if name in figures["parts"] for row in figures["parts"][name]["steps"]]
    print(table(_rows(rows), right=range(1, 9)))
    print(as_line(figures))
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
            if step.consumes:
                hollow(folder / step.consumes)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def _row(step: Step, folder: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    results = sorted(folder.glob(step.result))
    if not results:
        raise MeasureError(f"{step.title}: there is no {step.result} in {folder} although the command succeeded")
    facts: Mapping[str, float | None] = dict.fromkeys(GRAPH_FACTS)
    if step.graph:
        graphs = list(folder.glob(step.graph))
        if len(graphs) != 1:
            raise MeasureError(f"{step.title}: made {len(graphs)} graphs that match {step.graph}, 1 is expected")
        facts = graph_facts(graphs[0])
    return {
        "title": step.title,
        **measured,
        "memory_limit": step.memory_limit,
        "result_bytes": sum(map(disk_bytes, results)),
        **facts,
    }


def _read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    return figures


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "step", "wall s", "cpu s", "anon GiB", "rss GiB", "disk", "written", "result", "nodes", "fp8"
    for row in rows:
        share = row["fp8_linear_share"]
        yield (
            row["title"],
            f"{row['wall_s']:.0f}",
            f"{row['cpu_s']:.0f}",
            f"{row['peak_anonymous'] / GIB:.2f}",
            f"{row['peak_rss'] / GIB:.2f}",
            *(_size(row[name]) for name in ("peak_disk", "written", "result_bytes")),
            f"{row['nodes']:,}" if row["nodes"] else "",
            f"{share:.0%} of linears, {row['fp8_weight_share']:.0%} of weights" if share else "",
        )
        for stage in row.get("stages", ())[1:]:
            wall, peak = f"{stage['wall_s']:.0f}", f"{stage['peak_anonymous'] / GIB:.2f}"
            yield (f"  {stage['name']}", wall, "", peak, *[""] * 6)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(run(main))
