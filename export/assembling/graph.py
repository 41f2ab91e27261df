"""From a network to its ONNX model: trace without weights, simplify, attach the weights, check, serialise.

Tracing needs no weights and no memory to speak of, whatever the network's size: the module is built on torch's
``meta`` device. Weights are put in afterwards, by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import ExportError
from export.networks.base import Network
from export.precision import STORED_WHOLE
from export.reporting import quiet

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPSET = 20
"""Unless another is asked for. The last without an Attention operator: plain graphs for ONNX Runtime."""

OPSETS = (20, 21, 23)
"""What can be asked for: plain; the first with FP8; the first with Attention and RMSNormalization as one node."""

COMPUTE = ("float32", "float16", "bfloat16")
"""Types that a network can compute in."""

FORBIDDEN_TYPES = ("DOUBLE", "COMPLEX64", "COMPLEX128")
"""Element types that no engine we build for takes."""

_CHATTY = ("torch.onnx", "onnx_ir", "onnxscript", "diffusers", "transformers")
"""Loggers that speak of packages that are not needed, names that are shared, blank weights."""

_TRACE_SIZES = {"levels": 7, "batch": 2, "image_tokens": 6, "rows": 6, "columns": 10, "text_tokens": 5}
"""Sizes of the traced example: no two coincide with one another's or with 0 and 1, which a trace would fix."""


def trace(network: Network, dtype: str = "float32", opset: int = OPSET, stored: str | None = None) -> ir.Model:
    """The network's graph, simplified, its weights blank: named as in the state dict, typed, without values.

    dtype (one of COMPUTE): what it computes in; the floating ports stay float32. opset: one of OPSETS. stored: what
    its matrices are stored in: ``dtype`` (None), or float16 where that is float32. Raises ExportError. Takes no memory
    for weights, whatever the network's size.
    """
    from export.passes.blank_weights import blank_weights
    from export.passes.precision.narrow_weights import halve_weights
    from export.passes.simplify import simplify
    from export.passes.strip_metadata import strip_metadata

    for what, value, allowed in (("compute type", dtype, COMPUTE), ("opset", opset, OPSETS)):
        if value not in allowed:
            raise ExportError(f"no {what} {value}; allowed: {', '.join(map(str, allowed))}")
    if stored not in (None, dtype) and (dtype, stored) != ("float32", "float16"):
        raise ExportError(f"no matrices in {stored} where {dtype} is computed in; allowed: {dtype}, of float32 float16")
    with quiet(*_CHATTY):
        model = _torch_export(network, dtype, opset)
        blank_weights(model)
        simplify(model)
        if stored not in (None, dtype):
            halve_weights(model, STORED_WHOLE)
        strip_metadata(model, network.name)
    _check_types(model, network)
    return model


def finish(model: ir.Model, network: Network) -> bytes:
    """The finished graph, checked and serialised; equal graphs give equal bytes. Raises ExportError.

    Weights may be inside or beside it (external data, which is not read here). Ports and their symbolic dimensions
    are checked, and that the graph is valid ONNX whose types and shapes fit together throughout.
    """
    import onnx
    import onnx_ir as ir

    from export.passes.check_ports import check_ports

    check_ports(model, network)
    blank = next((name for name, value in model.graph.initializers.items() if value.const_value is None), None)
    if blank is not None:
        raise ExportError(f"the weight {blank} of {network.name} has no value yet: attach the weights first")
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(_without_external(proto))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported {network.name} is not valid ONNX: {error}") from error
    return bytes(proto.SerializeToString(deterministic=True))


def _without_external(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its external weights as inputs: the checker would look for their file in the current folder."""
    import onnx

    external = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    inside = [t for t in copy.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(inside)
    copy.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in external)
    return copy


def _torch_export(network: Network, dtype: str, opset: int) -> ir.Model:
    import torch
    from torch.export import Dim

    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in network.bounds.items()}
    arguments, dynamic = {}, {}
    for name, (kind, shape) in network.ports_in.items():
        sizes = [_TRACE_SIZES[d] if isinstance(d, str) else d for d in shape]
        arguments[name] = torch.zeros(sizes, dtype=getattr(torch, kind), device="meta")
        dynamic[name] = {axis: dims[d] for axis, d in enumerate(shape) if isinstance(d, str)}
    with torch.no_grad():
        with torch.device("meta"):
            module = network.build(getattr(torch, dtype)).eval()
        try:
            program = torch.onnx.export(
                module,
                (),
                kwargs=arguments,
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=opset,
                optimize=False,
                output_names=list(network.ports_out),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f"torch cannot export {network.name}: {reason}") from error
    if program is None:
        raise ExportError(f"torch gave no program for {network.name}")
    return program.model


def _check_types(model: ir.Model, network: Network) -> None:
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype is not None and value.dtype.name in FORBIDDEN_TYPES:
                raise ExportError(f"{network.name}: {node.op_type} computes in {value.dtype.name}; engines do not")
