"""What a build needs, estimated from headers before it starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engines.memory.card import CardMemory, card_memory, weights_alone
from engines.memory.extents import extents_of_profiles
from engines.schema import PlanMemory
from export.assembling.inputs import ITEMSIZE
from export.assembling.manifest import outline
from export.assembling.twin_parity import RUN_BELOW
from export.folders.places import Needs, amount, check_place, existing, held, one_after_the_other
from export.precision import CPU, FUSED_HEADS
from export.tensorrt.estimate import PLANS_ADVICE
from export.tensorrt.estimate import estimate as plan_estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from engines.memory.extents import Span
    from export.assembling.gate import GateRun
    from export.assembling.inputs import Build, Task
    from export.tensorrt.plans import Setup

_PROGRAM_MEMORY = 800 << 20
"""Bytes that torch, diffusers, transformers and the exporter take before any weight is read (measured)."""

_GRAPH_MEMORY = 0.05
"""Bytes a parameter that tracing takes: a graph grows with a network's depth, as its parameters do (measured)."""

_STREAM_MEMORY = 512 << 20
"""Bytes of the runs of rows that are merged and cast, LoRA factors included (measured)."""

_COPIES = 5
"""Copies of a network's float32 weights where it is run: reference, graph, model, session, its packed matrices."""

_TRACE_SECONDS, _SECONDS_PER_PARAMETER = 10.0, 12e-9
"""Time of tracing, quantising, merging, storing and checking a parameter, two cores (measured at full size)."""


def estimate(build: Build, gate_run: GateRun | None) -> Needs:
    """What the networks of a build take, its quality gate included, its plans not. disk: of the work folder, and
    again of the bundle where that lies on another disk."""
    gate = [gate_run.needed] if gate_run is not None else []
    found = one_after_the_other([*map(_needs, build.tasks), *gate])
    return Needs(_PROGRAM_MEMORY + found.memory, found.disk, found.seconds)


def _needs(task: Task) -> Needs:
    count = task.parameters
    held = 4 * count <= RUN_BELOW or task.inline
    memory = _COPIES * 4 * count if held else int(_GRAPH_MEMORY * count) + _STREAM_MEMORY
    return Needs(memory, task.bytes_fp8 + task.bytes_high, _TRACE_SECONDS + _SECONDS_PER_PARAMETER * count)


def estimate_plans(build: Build, setup: Setup) -> Needs:
    """What the plans of a build take."""
    return one_after_the_other(
        plan_estimate(task.bytes_high, task.bytes_fp8, setup.target, setup.toolkit.flavour) for task in build.tasks
    )


def estimate_card(build: Build) -> CardMemory | None:
    """What the bundle will take of a GPU; None where not all of it is built, or for a CPU.

    Known are the weights, and the buffers from the shapes that plans take. What a plan works in is estimated, as the
    results that are alive together in the network as it is traced, in the type that it computes in. Where attention has
    no kernel of its own its scores are among them, and of weights that are stored in FP8 two at a time are widened.
    Compared with what builders said, in ``docs/log.md``. For target onnx, which any shapes may be built from: weights
    alone.
    """
    wanted = build.wanted
    if wanted.only or wanted.target == CPU:
        return None
    from export.tensorrt.plans import network_profiles

    manifest, weights = outline(build), {task.name: task.bytes_fp8 + task.bytes_high for task in build.tasks}
    if not wanted.needs_plans:
        return weights_alone(manifest, weights)
    extents = extents_of_profiles(manifest.networks, network_profiles(manifest, wanted.shapes))
    plans = {
        task.name: PlanMemory(weights=weights[task.name], activations=activations(task, extents[task.name]))
        for task in build.tasks
    }
    return card_memory(manifest, plans, extents, "estimate")


def activations(task: Task, spans: Mapping[str, Span]) -> int:
    """Bytes that the plan of a network works in, at the greatest shapes of its inputs, estimated: see above."""
    from export.networks.cost import cost_of

    network, itemsize = task.network, ITEMSIZE[task.compute]
    heads = FUSED_HEADS if task.compute != "float32" else ()
    peak = cost_of(network, {dim: span.most for dim, span in spans.items()}, heads).peak
    widened = max((math.prod(network.weights[name].shape) for name in task.stored), default=0)
    return peak * itemsize // ITEMSIZE["float32"] + 2 * widened * itemsize


def sizes_table(build: Build) -> Table:
    """What each network is, before it is built: parameters, types, and bytes of its weights as they will be stored."""
    from rich.table import Table

    table = Table(title="networks to build")
    for name in ("network", "parameters", "computes in", "stored in", "stored in FP8", "bytes"):
        table.add_column(name, justify="left" if name in ("network", "computes in", "stored in") else "right")
    for task in build.tasks:
        share = f"{task.bytes_fp8 / task.parameters:.0%}" if task.bytes_fp8 else ""
        size = amount(task.bytes_fp8 + task.bytes_high)
        table.add_row(task.name, f"{task.parameters:,}", task.compute, task.stored_in, share, size)
    return table


def check_fit(build: Build, networks: Needs, plans: Needs | None) -> None:
    """Raise ExportError where the memory is not there, or a folder cannot be written or has no room.

    What the work folder holds already counts as room: a build that goes on uses it again.
    """
    wanted = build.wanted
    networks.check()
    if plans is not None:
        plans.check(advice=PLANS_ADVICE)
    size = networks.disk + (plans.disk if plans is not None else 0)
    check_place(wanted.workdir, "--workdir", max(size - held(wanted.workdir), 0))
    if not wanted.only:
        same = existing(wanted.workdir).stat().st_dev == existing(wanted.out.parent).stat().st_dev
        check_place(wanted.out.parent, "--out", 0 if same else networks.disk, shown=wanted.out)
