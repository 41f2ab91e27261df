"""Parity of a network that is too large to be run here: that of its twin."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.schema import ParityResult
from export.networks.base import BACKBONE

if TYPE_CHECKING:
    from export.assembling.inputs import Build, Task
    from export.networks.base import Network

RUN_BELOW = 1 << 29
"""Bytes of float32 weights up to which a network is run where it is built."""

_SEED = 20260210


def is_small(network: Network) -> bool:
    """Whether a network is held to torch itself."""
    return 4 * sum(math.prod(info.shape) for info in network.weights.values()) <= RUN_BELOW


def check_twin(task: Task, build: Build) -> Sequence[ParityResult]:
    """Take the twin of a network through the same code and hold it to torch. Raises ParityError, ExportError."""
    from export.assembling.parity import check_parity

    with tempfile.TemporaryDirectory(prefix="arcflow-twin-") as temporary:
        network, model = export_twin(task, build, Path(temporary))
        results = check_parity(network, model, task.precision, task.compute)
    return [msgspec.structs.replace(result, twin=True) for result in results]


def export_twin(task: Task, build: Build, folder: Path) -> tuple[Network, bytes]:
    """The twin of a network, and what the same code exports of it. Its reference is read from ``folder``.

    Raises ExportError, WeightsError.
    """
    from export.assembling.attach import attach_inline
    from export.assembling.graph import finish, trace
    from export.assembling.twin import make_twin
    from export.passes.precision.quantize_weights import quantize_weights
    from export.weights.merge import merge

    architecture, base = build.wanted.architecture, folder / "base"
    make_twin(build.subject.base, build.subject.adapter, folder, _SEED)
    student = merge(base / architecture.parts[BACKBONE].folder, folder / "adapter")
    network = architecture.network(task.name, base, student, build.wanted.max_nfe)
    model = trace(network, task.compute, task.opset, task.stored_in)
    quantize_weights(model, network.fp8_weights if task.stored else ())
    if task.fp8 is not None:
        from export.passes.precision.quantize_fp8 import blank_layers, quantize_fp8

        quantize_fp8(model, _scales(network, blank_layers(model, network)))
    attach_inline(model, network)
    return network, finish(model, network)


def _scales(network: Network, weights: Sequence[str]) -> Mapping[str, float]:
    """Input scales of a twin, from the inputs that parity is measured on."""
    import torch

    from export.fp8.numbers import activation_scale
    from export.fp8.observers import Observer
    from export.fp8.policy import layer_of

    reference: Any = network.reference()
    observers = {name: Observer() for name in weights}
    for name, observer in observers.items():
        layer = reference.network.get_submodule(layer_of(name))
        layer.register_forward_pre_hook(lambda _, args, seen=observer: seen.see(args[0], histogram=False))
    with torch.no_grad():
        for index, sizes in enumerate(network.parity_sizes):
            reference(**network.examples(sizes, torch.Generator().manual_seed(_SEED + index)))
    return {name: activation_scale(observer.amax) for name, observer in observers.items()}
