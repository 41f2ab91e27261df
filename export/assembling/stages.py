"""The stages of a build, each resumable: one a network (trace, quantise, store, parity), plans, the bundle.

A network's results lie in ``workdir/<network>-<key>``, where the key digests its sources, the policy, the tools and
this code. What is there and verified is not done again; what was being stored when a run was killed is continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.schema import ParityResult
from export.assembling.inputs import Build, Task
from export.assembling.record import RECORD, Exported, Record, read_record, tool_versions
from export.assembling.wanted import Attention
from export.folders.keys import key_of, stage_folder
from export.reporting import Report
from foundation.files import atomic_file

if TYPE_CHECKING:
    import onnx_ir as ir


def build_networks(build: Build, report: Report) -> list[Exported]:
    """Every network that was asked for, exported or found. Raises an ArcFlowError."""
    return [_exported(task, build, report) for task in build.tasks]


def network_folder(task: Task, build: Build) -> Path:
    """Where a network's results lie, from all that they depend on."""
    facts = {
        "model": build.wanted.spec.architecture,
        "network": task.name,
        "source": task.source,
        "compute": task.compute,
        "stored in": task.stored_in,
        "opset": task.opset,
        "inline": task.inline,
        "tools": tool_versions(),
    }
    if task.network.levels:
        facts |= {"levels": list(task.network.levels)}
    if task.stored:
        facts |= {"stored": sorted(task.stored)}
    if task.fp8 is not None:
        facts |= {"calibration": task.fp8.calibration.digest, "keep_high": sorted(task.fp8.keep_high)}
        facts |= {"attention": task.fp8.attention}
    return stage_folder(build.wanted.workdir, task.name, key_of(facts, __name__))


def _exported(task: Task, build: Build, report: Report) -> Exported:
    """Export one network into its folder and check it, unless that is there already."""
    folder = network_folder(task, build)
    record = read_record(folder)
    note = "done" if record is None else "reused"
    record = record or _export(task, build, folder, report)
    report(task.name, 1, 1, note)
    return Exported(task, folder, record)


def _export(task: Task, build: Build, folder: Path, report: Report) -> Record:
    """Trace, quantise, store, check; the graph takes its name only after parity was found."""
    from export.assembling.graph import finish
    from export.assembling.parity import check_parity
    from export.assembling.twin_parity import check_twin, is_small

    name, network = task.name, task.network
    parity: Sequence[ParityResult] = ()
    if not is_small(network):
        report(name, 0, 0, "parity of its twin")
        parity = check_twin(task, build)
    report(name, 0, 0, "trace")
    model, quantised, stored = _graph(task)
    nodes = sum(1 for _ in model.graph.all_nodes())
    data_files = _attach(model, task, folder, report)
    data = finish(model, network)
    with atomic_file(folder / f"{name}.onnx") as temporary:
        temporary.write_bytes(data)
        if not parity:
            report(name, 0, 0, "parity")
            parity = check_parity(network, temporary, task.precision, task.compute)
    record = Record({f"{name}.onnx": hashlib.sha256(data).hexdigest(), **data_files}, parity, quantised, nodes, stored)
    with atomic_file(folder / RECORD) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return record


def _graph(task: Task) -> tuple[ir.Model, tuple[str, ...], tuple[str, ...]]:
    """The weightless graph, the weights that it multiplies in FP8, and those that it only stores so."""
    from export.assembling.graph import trace
    from export.passes.precision.quantize_weights import quantize_weights

    model = trace(task.network, task.compute, task.opset, task.stored_in)
    stored = quantize_weights(model, task.network.fp8_weights if task.stored else (), task.kept)
    if task.fp8 is None:
        return model, (), stored
    from export.passes.precision.quantize_fp8 import blank_layers, quantize_fp8

    calibration = task.fp8.calibration
    quantised = quantize_fp8(model, calibration.input_scales(blank_layers(model, task.network, task.fp8.keep_high)))
    if task.fp8.attention is Attention.FP8:
        from export.passes.precision.quantize_attention import quantize_attention

        quantize_attention(model, calibration.attention)
    return model, quantised, stored


def _attach(model: ir.Model, task: Task, folder: Path, report: Report) -> dict[str, str]:
    """Give the graph its weights: inside it for a CPU, else beside it. Returns sha256 by name of the files beside."""
    from export.assembling.attach import attach_external, attach_inline
    from export.assembling.stored import INLINE_MAX, plan_stored, size_of
    from export.passes.transpose_weights import transpose_weights

    name, network = task.name, task.network
    if task.inline and size_of(plan_stored(model, network)) < INLINE_MAX:
        report(name, 0, 0, "weights")
        attach_inline(model, network)
        transpose_weights(model)
        return {}
    stored = attach_external(
        model, network, folder, task.source, lambda phase, done, total, _="": report(name, done, total, phase)
    )
    return {stored.path.name: stored.sha256}
