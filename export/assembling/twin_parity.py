"""Parity of an exported network: its own where it is small enough to be run here, else that of its twin."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.schema import ParityResult
from export.networks.base import BACKBONE
from export.precision import compute_dtype, opset
from export.students.request import Sources

if TYPE_CHECKING:
    from export.networks.base import Network

RUN_BELOW = 1 << 29
"""Bytes of float32 weights up to which a network is run where it is built."""

_SEED = 20260210


def is_small(network: Network) -> bool:
    """Whether a network is held to torch itself."""
    elements = sum(_elements(info.shape) for info in network.weights.values())
    return 4 * elements <= RUN_BELOW


def check_own(network: Network, model: Path, sources: Sources) -> Sequence[ParityResult]:
    """The parity of the exported network at ``model``. Raises ParityError where it is missed."""
    from export.assembling.parity import check_parity

    request = sources.request
    compute = compute_dtype(network.name, request.precision, request.target)
    return check_parity(network, model, request.precision, compute)


def check_twin(name: str, sources: Sources) -> Sequence[ParityResult]:
    """Take the twin of a network through the same code and hold it to torch. Raises ParityError, ExportError."""
    from export.assembling.graph import finish, trace
    from export.assembling.parity import check_parity
    from export.assembling.twin import make_twin
    from export.passes.attach_weights import attach_inline
    from export.weights.merge import merged_student, plan_merge

    request, architecture = sources.request, sources.request.architecture
    compute = compute_dtype(name, request.precision, request.target)
    with tempfile.TemporaryDirectory(prefix="arcflow-twin-") as temporary:
        base, adapter = Path(temporary) / "base", Path(temporary) / "adapter"
        make_twin(request.base, request.adapter, Path(temporary), _SEED)
        student = merged_student(plan_merge(base / architecture.FOLDERS[BACKBONE], adapter), "twin", "twin")
        network: Network = architecture.network(name, base, student, adapter)
        model = trace(network, compute, opset(request.precision, request.target))
        if name == BACKBONE and sources.calibration is not None:
            from export.passes.quantize_fp8 import blank_layers, quantize_fp8

            quantize_fp8(model, _scales(network, blank_layers(model, network)))
        attach_inline(model, network)
        results = check_parity(network, finish(model, network), request.precision, compute)
    return [msgspec.structs.replace(result, twin=True) for result in results]


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


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
