"""The stages of a build, each resumable: one a network (trace, quantise, store, parity), plans, the bundle.

A network's results lie in ``workdir/<network>-<key>``, where the key digests its sources, the policy, the tools and
this code. What is there and verified is not done again; what was being stored when a run was killed is continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.schema import ParityResult
from export.assembling.record import RECORD, Exported, Record, read_record, tool_versions
from export.folders.keys import key_of, stage_folder
from export.networks.base import BACKBONE
from export.precision import CPU, compute_dtype, opset
from export.students.request import Attention, Sources
from foundation.files import atomic_file

if TYPE_CHECKING:
    import onnx_ir as ir

    from export.networks.base import Network


@dataclass(frozen=True)
class Event:
    """Progress of a stage (a network's name, "plan <network>" or "bundle"): ``done`` of ``total``, and what it does."""

    stage: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Event], None]


def build_networks(sources: Sources, report: Report) -> list[Exported]:
    """Every network that was asked for, exported or found. Raises an ArcFlowError."""
    return [_exported(name, sources, report) for name in sources.request.networks]


def network_folder(name: str, sources: Sources) -> Path:
    """Where a network's results lie, from all that they depend on."""
    request = sources.request
    facts = {
        "model": request.spec.architecture,
        "network": name,
        "source": sources.student.digest if name == BACKBONE else sources.digests[request.architecture.FOLDERS[name]],
        "compute": compute_dtype(name, request.precision, request.target),
        "opset": opset(request.precision, request.target),
        "inline": request.target == CPU,
        "tools": tool_versions(),
    }
    if name == BACKBONE and sources.calibration is not None:
        facts |= {"calibration": sources.calibration.digest, "keep_high": sorted(sources.keep_high)}
        facts |= {"attention": request.attention}
    return stage_folder(request.workdir, name, key_of(facts, __name__))


def _exported(name: str, sources: Sources, report: Report) -> Exported:
    """Export one network into its folder and check it, unless that is there already."""
    request = sources.request
    folder = network_folder(name, sources)
    network: Network = request.architecture.network(name, request.base, sources.student, request.adapter, request.loras)
    record = read_record(folder)
    if record is None:
        record = _export(network, sources, folder, report)
        report(Event(name, 1, 1, "done"))
    else:
        report(Event(name, 1, 1, "reused"))
    return Exported(name, folder, network, compute_dtype(name, request.precision, request.target), record)


def _export(network: Network, sources: Sources, folder: Path, report: Report) -> Record:
    """Trace, quantise, store, check; the graph takes its name only after parity was found."""
    from export.assembling.graph import finish
    from export.assembling.twin_parity import check_own, check_twin, is_small

    name = network.name
    parity: Sequence[ParityResult] = ()
    if not is_small(network):
        report(Event(name, 0, 0, "parity of its twin"))
        parity = check_twin(name, sources)
    report(Event(name, 0, 0, "trace"))
    model, quantised = _graph(network, sources)
    nodes = sum(1 for _ in model.graph.all_nodes())
    data_files = _attach(model, network, sources, folder, report)
    data = finish(model, network)
    with atomic_file(folder / f"{name}.onnx") as temporary:
        temporary.write_bytes(data)
        if not parity:
            report(Event(name, 0, 0, "parity"))
            parity = check_own(network, temporary, sources)
    record = Record({f"{name}.onnx": hashlib.sha256(data).hexdigest(), **data_files}, parity, quantised, nodes)
    with atomic_file(folder / RECORD) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return record


def _graph(network: Network, sources: Sources) -> tuple[ir.Model, tuple[str, ...]]:
    """The weightless graph in the request's precision, and the weights that it wants in FP8."""
    from export.assembling.graph import trace

    request = sources.request
    compute = compute_dtype(network.name, request.precision, request.target)
    model = trace(network, compute, opset(request.precision, request.target))
    if network.name != BACKBONE or sources.calibration is None:
        return model, ()
    from export.passes.quantize_fp8 import blank_layers, quantize_fp8

    scales = sources.calibration.input_scales(blank_layers(model, network, sources.keep_high))
    quantised = quantize_fp8(model, scales)
    if request.attention is Attention.FP8:
        from export.passes.quantize_attention import quantize_attention

        quantize_attention(model, sources.calibration.attention)
    return model, quantised


def _attach(model: ir.Model, network: Network, sources: Sources, folder: Path, report: Report) -> dict[str, str]:
    """Give the graph its weights: inside it for a CPU, else beside it. Returns sha256 by name of the files beside."""
    from export.assembling.stored import INLINE_MAX, plan_stored, size_of
    from export.passes.attach_external import attach_external
    from export.passes.attach_weights import attach_inline
    from export.passes.transpose_weights import transpose_weights

    name = network.name
    if sources.request.target == CPU and size_of(plan_stored(model, network)) < INLINE_MAX:
        report(Event(name, 0, 0, "weights"))
        attach_inline(model, network)
        transpose_weights(model)
        return {}
    identity = (
        sources.student.digest if name == BACKBONE else sources.digests[sources.request.architecture.FOLDERS[name]]
    )
    stored = attach_external(
        model, network, folder, identity, lambda phase, done, total: report(Event(name, done, total, phase))
    )
    return {stored.path.name: stored.sha256}
