"""Check that the finished graph takes and gives exactly what its network promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from export.errors import ExportError
from export.networks.base import Dims, Network


def check_ports(model: ir.Model, network: Network) -> None:
    """Raise ExportError unless inputs and outputs have the promised names, types and dimensions.

    A symbolic dimension that the trace made a constant is caught here: the model would work at one size only.
    """
    _check(network, "input", model.graph.inputs, network.ports_in)
    _check(network, "output", model.graph.outputs, network.ports_out)


def _check(network: Network, kind: str, values: Sequence[ir.Value], ports: Mapping[str, tuple[str, Dims]]) -> None:
    names = [value.name for value in values]
    if names != list(ports):
        raise ExportError(f"{network.name}: the trace's {kind}s are {names}, {list(ports)} were expected")
    for value, (name, (dtype, dims)) in zip(values, ports.items(), strict=True):
        found = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
        if found != dims:
            raise ExportError(
                f"{network.name}: the {kind} {name} has the dimensions {list(found)}, {list(dims)} were expected; "
                "a dimension that became a number was fixed by the trace"
            )
        if value.dtype is None or value.dtype.numpy() != dtype:
            raise ExportError(f"{network.name}: the {kind} {name} is of type {value.dtype}, {dtype} was expected")
