"""What a build needs, estimated from headers before it starts: memory, disk and time; and whether that is there."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.precision import CPU, Precision, compute_dtype
from export.request import BACKBONE, Headers

if TYPE_CHECKING:
    from export.merge import MergedStudent
    from export.weights import Weights

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
    """What a build needs at most. memory, work, bundle: bytes (work: disk of the work folder); seconds: on two cores.

    The plans' share is not in it (:mod:`export.tensorrt.estimate`).
    """

    memory: int
    work: int
    bundle: int
    seconds: float


def estimate(headers: Headers) -> Estimate:
    """What the networks of a build will need, from the sizes in the headers."""
    from export.twin_parity import SMALL

    memory, seconds = 0, 0.0
    for weights in _weights(headers).values():
        count = sum(math.prod(info.shape) for info in weights.values())
        held = 4 * count <= SMALL or headers.request.target == CPU
        memory = max(memory, _COPIES * 4 * count if held else int(_GRAPH_MEMORY * count) + _STREAM_MEMORY)
        seconds += _TRACE_SECONDS + _SECONDS_PER_PARAMETER * count
    disk = sum(stored_sizes(headers).values())
    return Estimate(_PROGRAM_MEMORY + memory, disk, disk, seconds)


def stored_sizes(headers: Headers) -> dict[str, int]:
    """Bytes of each network's weights as they will be stored, about."""
    request, sizes = headers.request, {}
    for name, weights in _weights(headers).items():
        itemsize = _ITEMSIZE[compute_dtype(name, request.precision, request.target)]
        quantised = fp8_layers(headers) if name == BACKBONE else frozenset()
        sizes[name] = sum(
            math.prod(info.shape) * (1 if key in quantised else itemsize) for key, info in weights.items()
        )
    return sizes


def high_bytes(headers: Headers) -> int:
    """Bytes of the backbone's stored weights that fp8 leaves in a wider type."""
    weights = _student(headers).weights
    return stored_sizes(headers)[BACKBONE] - sum(math.prod(weights[name].shape) for name in fp8_layers(headers))


def fp8_layers(headers: Headers) -> frozenset[str]:
    """The backbone's weights that fp8 takes, by state-dict name; none in another precision. Raises ExportError."""
    if headers.request.precision is not Precision.FP8:
        return frozenset()
    from export.fp8_policy import select_layers

    request, student = headers.request, _student(headers)
    network = request.seam.network(BACKBONE, request.base, student, request.adapter)
    return frozenset(select_layers(student.weights, network.fp8_layers, headers.keep_high))


def _weights(headers: Headers) -> dict[str, Weights]:
    from export.weights import open_folder

    request = headers.request
    return {
        name: _student(headers).weights if name == BACKBONE else open_folder(request.base / request.seam.FOLDERS[name])
        for name in request.networks
    }


def _student(headers: Headers) -> MergedStudent:
    """The student as far as headers tell: without its digest."""
    from export.merge import merged_student

    return merged_student(headers.plan, "", "")


def check_fit(headers: Headers, needed: Estimate) -> None:
    """Raise ExportError where the memory is not there, or a folder cannot be written or has no room."""
    from export.tensorrt.estimate import available_memory

    free = available_memory()
    if free is not None and free < needed.memory:
        raise ExportError(
            f"the build needs about {needed.memory:,} bytes of memory, {free:,} are free: close other programs, "
            "or build on a larger machine"
        )
    request = headers.request
    places = [(request.workdir, needed.work, "--workdir")]
    if not request.only:
        places.append((request.out, 0 if _same_device(request.workdir, request.out) else needed.bundle, "--out"))
    for folder, size, option in places:
        there = _existing(folder)
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ExportError(f"cannot write {folder}: {there} is closed to you; choose another {option}")
        room = shutil.disk_usage(there).free
        if room < size:
            raise ExportError(f"{folder} needs {size:,} bytes, {room:,} are free there; choose another {option}")


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _same_device(one: Path, other: Path) -> bool:
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev
