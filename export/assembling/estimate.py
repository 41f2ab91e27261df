"""What a build needs, estimated from headers before it starts: memory, disk and time; and whether that is there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.folders.places import check_memory, check_place, existing
from export.networks.base import BACKBONE
from export.precision import CPU, Precision, compute_dtype
from export.students.request import Headers

if TYPE_CHECKING:
    from export.weights.files import Weights

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

_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Estimate:
    """What a build needs at most, its quality gate included.

    memory, work, bundle: bytes (work: disk of the work folder); seconds: on two cores. The plans' share is not in it
    (:mod:`export.tensorrt.estimate`).
    """

    memory: int
    work: int
    bundle: int
    seconds: float


def estimate(headers: Headers) -> Estimate:
    """What the networks of a build will need, from the sizes in the headers."""
    from export.assembling.twin_parity import RUN_BELOW

    memory, seconds = 0, 0.0
    for weights in _weights(headers).values():
        count = sum(math.prod(info.shape) for info in weights.values())
        held = 4 * count <= RUN_BELOW or headers.request.target == CPU
        memory = max(memory, _COPIES * 4 * count if held else int(_GRAPH_MEMORY * count) + _STREAM_MEMORY)
        seconds += _TRACE_SECONDS + _SECONDS_PER_PARAMETER * count
    gate_memory, gate_seconds = _gate(headers)
    disk = sum(stored_sizes(headers).values())
    return Estimate(_PROGRAM_MEMORY + max(memory, gate_memory), disk, disk, seconds + gate_seconds)


def _gate(headers: Headers) -> tuple[int, float]:
    """Memory and time of the quality gate that ends an fp8 build of a small student."""
    from export.assembling.gate import gate_needs

    request, student = headers.request, headers.student_unread()
    if request.precision is not Precision.FP8:
        return 0, 0.0
    networks = {
        name: request.architecture.network(name, request.base, student, request.adapter, request.loras)
        for name in request.networks
    }
    return gate_needs(request, networks, headers.latent, student.policy.nfe)


def stored_sizes(headers: Headers) -> dict[str, int]:
    """Bytes of each network's weights as they will be stored, about."""
    request, sizes = headers.request, {}
    for name, weights in _weights(headers).items():
        itemsize = _ITEMSIZE[compute_dtype(name, request.precision, request.target)]
        quantised = headers.fp8_layers() if name == BACKBONE else frozenset()
        sizes[name] = sum(
            math.prod(info.shape) * (1 if key in quantised else itemsize) for key, info in weights.items()
        )
    return sizes


def high_bytes(headers: Headers) -> int:
    """Bytes of the backbone's stored weights that fp8 leaves in a wider type."""
    weights = headers.student_unread().weights
    return stored_sizes(headers)[BACKBONE] - sum(math.prod(weights[name].shape) for name in headers.fp8_layers())


def _weights(headers: Headers) -> dict[str, Weights]:
    from export.weights.files import open_folder

    request = headers.request
    folders = request.architecture.FOLDERS
    return {
        name: headers.student_unread().weights if name == BACKBONE else open_folder(request.base / folders[name])
        for name in request.networks
    }


def check_fit(headers: Headers, needed: Estimate) -> None:
    """Raise ExportError where the memory is not there, or a folder cannot be written or has no room."""
    request = headers.request
    check_memory(needed.memory)
    check_place(request.workdir, "--workdir", needed.work)
    if not request.only:
        same = existing(request.workdir).stat().st_dev == existing(request.out.parent).stat().st_dev
        check_place(request.out.parent, "--out", 0 if same else needed.bundle, shown=request.out)
