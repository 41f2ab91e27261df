"""Quantise linears to FP8: pairs of QuantizeLinear and DequantizeLinear around what they multiply.

A weight W [out, in] becomes a FLOAT8E4M3FN initializer of the same name, dequantised by ``W_scale`` [out]; both are
blank and get their values as every other weight does. The layer's input goes through one pair with one constant scale.
What is added, normed or softmaxed is not touched, so the graph's other types stay what they were.

    x -> QuantizeLinear(s) -> DequantizeLinear(s) --------------------+
    W -> DequantizeLinear(W_scale, axis=0) -> Transpose --------------+-> MatMul -> (Add)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from export.errors import ExportError
from export.fp8.numbers import INPUT_SCALE_SUFFIX
from export.fp8.policy import layer_of, select_layers
from export.passes.precision.quantize_weights import fp8_rows

if TYPE_CHECKING:
    from export.networks.base import Network

OPSET = 21
"""The first opset in which scales and results may be float16 and bfloat16, and in which the output type is named."""

_COMPUTE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class _Linear:
    """Where a weight is multiplied. transpose: the node between weight and MatMul, None where Gemm transposes.

    compute: the type of weight, input and result; shape: of the weight.
    """

    weight: ir.Value
    transpose: ir.Node | None
    multiply: ir.Node
    compute: ir.DataType
    shape: ir.Shape

    @property
    def input(self) -> ir.Value:
        """What the weight is multiplied with."""
        value = self.multiply.inputs[0]
        if value is None:
            raise ExportError(f"{self.weight.name} is multiplied with nothing")
        return value

    @property
    def reader(self) -> ir.Node:
        """The node that reads the weight."""
        return self.transpose or self.multiply


def quantize_fp8(model: ir.Model, input_scales: Mapping[str, float]) -> tuple[str, ...]:
    """Quantise the linears of the weights named in ``input_scales``, in place; returns those names in graph order.

    input_scales: scale (> 0, finite) of the layer's input by weight name. Layers that read the same tensor share one
    pair and the greatest of their scales: what is read together can then be multiplied together.
    Run it on a traced graph whose weights are blank. The scales are stored in the type that the layer computes in.
    Raises ExportError, with the graph unchanged, where the opset is below 21, a name is no blank 2-D weight that only
    linears read, or a scale is no positive number of that type.
    """
    version = model.opset_imports.get("", 0)
    if version < OPSET:
        raise ExportError(f"fp8 needs ONNX opset {OPSET} or newer, this graph has {version}")
    found = [linear for name, scale in input_scales.items() for linear in _find(model, name, scale)]
    order = {node: place for place, node in enumerate(model.graph)}
    found.sort(key=lambda linear: (order[linear.multiply], str(linear.weight.name)))
    scales: dict[ir.Value, float] = {}
    for linear in found:
        scale = input_scales[str(linear.weight.name)]
        scales[linear.input] = max(scales.get(linear.input, 0.0), scale)
    weights: dict[str, ir.Value] = {}
    for linear in sorted(found, key=lambda linear: order[linear.reader]):
        name = str(linear.weight.name)
        if name not in weights:
            weights[name] = fp8_rows(model, linear.weight, linear.reader)
        linear.reader.replace_input_with(0 if linear.transpose else 1, weights[name])
    inputs: dict[ir.Value, ir.Value] = {}
    for linear in found:
        source = linear.input
        if source not in inputs:
            inputs[source] = _quantise_input(model, linear, scales[source])
        linear.multiply.replace_input_with(0, inputs[source])
    _check(found)
    return tuple(dict.fromkeys(str(linear.weight.name) for linear in found))


def _find(model: ir.Model, name: str, scale: float) -> list[_Linear]:
    """The linears that read the weight ``name``. Raises ExportError unless it is read by linears alone."""
    weight = model.graph.initializers.get(name)
    if weight is None or weight.const_value is not None:
        raise ExportError(f"fp8: the graph {model.graph.name} has no weight {name}; perhaps nothing reads it")
    compute, shape = weight.dtype, weight.shape
    if compute is None or compute not in _COMPUTE or shape is None or len(shape) != 2:
        raise ExportError(f"fp8: {name} is {compute} {shape}; a matrix of FLOAT, FLOAT16 or BFLOAT16 is needed")
    stored = float(np.array(scale, dtype=compute.numpy()))
    if not 0.0 < stored < float("inf"):
        raise ExportError(f"fp8: the input scale of {name} is {scale}; it must be positive and finite as {compute}")
    found = []
    for use in weight.uses():
        node = use.node
        if _is(node, "Transpose") and tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0):
            output = node.outputs[0]
            uses = list(output.uses())
            if output.is_graph_output() or not all(_is(u.node, "MatMul") and u.idx == 1 for u in uses):
                raise ExportError(f"fp8: {name} is read by more than linears; leave it out")
            found += [_Linear(weight, node, u.node, compute, shape) for u in uses]
        elif _is(node, "Gemm") and use.idx == 1 and _plain_gemm(node):
            found.append(_Linear(weight, None, node, compute, shape))
        else:
            raise ExportError(f"fp8: {name} is read by {node.op_type}; only linears can be quantised, leave it out")
    if not found:
        raise ExportError(f"fp8: nothing multiplies with {name}; leave it out")
    for linear in found:
        if linear.input.dtype != compute:
            raise ExportError(f"fp8: {name} is {compute}, its layer's input {linear.input.dtype}; they must be equal")
    return found


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and node.domain == ""


def _plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is a linear: y = x W^T + b."""
    numbers = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    flags = [node.attributes.get_int(name, 0) for name in ("transA", "transB")]
    return numbers == [1.0, 1.0] and flags == [0, 1]


def _quantise_input(model: ir.Model, linear: _Linear, scale: float) -> ir.Value:
    layer = layer_of(str(linear.weight.name))
    names = (f"{layer}{INPUT_SCALE_SUFFIX}", f"{layer}.input_quantise", f"{layer}.input_dequantise")
    return insert_pair(model, linear.multiply, linear.input, linear.compute, scale, names)


def insert_pair(
    model: ir.Model, before: ir.Node, source: ir.Value, compute: ir.DataType, scale: float, names: tuple[str, str, str]
) -> ir.Value:
    """Put ``source`` through FP8 with one scale, in front of a node; returns the pair's result, of type ``compute``.

    names: of the scale, which is stored in that type, and of the two nodes.
    """
    constant = ir.Value(name=names[0], type=ir.TensorType(compute), shape=ir.Shape(()))
    constant.const_value = ir.Tensor(np.array(scale, dtype=compute.numpy()), dtype=compute, name=names[0])
    model.graph.initializers.add(constant)
    attributes = {"output_dtype": int(ir.DataType.FLOAT8E4M3FN)}
    quantise = ir.node("QuantizeLinear", [source, constant], attributes, name=names[1])
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], constant], name=names[2])
    for node, kind in ((quantise, ir.DataType.FLOAT8E4M3FN), (dequantise, compute)):
        _describe(node.outputs[0], f"{node.name}d", kind, source.shape)
    model.graph.insert_before(before, [quantise, dequantise])
    return dequantise.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), shape


def _check(linears: Sequence[_Linear]) -> None:
    """Postcondition: every quantised layer multiplies two dequantised values of the type it computed in before."""
    for linear in linears:
        left = linear.multiply.inputs[0]
        right = linear.reader.inputs[0 if linear.transpose else 1]
        for side in (left, right):
            producer = side.producer() if side is not None else None
            dequantised = producer is not None and producer.op_type == "DequantizeLinear"
            if side is None or not dequantised or side.dtype != linear.compute:
                raise ExportError(f"fp8: {linear.weight.name} was not quantised on both sides; a fault of this pass")
        if linear.weight.dtype != ir.DataType.FLOAT8E4M3FN:
            raise ExportError(f"fp8: {linear.weight.name} did not become FP8; a fault of this pass")


def blank_layers(model: ir.Model, network: Network, kept: Sequence[str] = ()) -> tuple[str, ...]:
    """The weights of a traced graph that FP8 takes, by the network's own list less what is kept high."""
    blanks = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    return select_layers(blanks, network.fp8_layers, kept)
