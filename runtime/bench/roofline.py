"""The physical limit of a network: operations and bytes counted from its ONNX graph, against what a machine can do.

Counted are the products that dominate (MatMul, Gemm, Conv, Attention), two operations a multiply-add, each in the type
it is computed in; and the bytes that no implementation can avoid: every weight once as it is stored, every input and
output once. What lies between, a perfect engine keeps on the chip. The limit of an evaluation is therefore

    max(sum over types of operations / peak, bytes / bandwidth)

and no engine can be faster, but for one thing: weights that stay in a cache from one evaluation to the next (tens of
megabytes on a GPU) are not read again, so that a small network may pass its limit by memory. Shapes come from the
graph's own value infos, whose symbolic dimensions ("rows*columns") are evaluated, and from ONNX's inference; a
product without a shape is an error, never a silent zero.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import BackendError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_FLOAT8 = "float8"
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Cost:
    """What one evaluation of a network takes at least.

    operations: floating operations of the large products by the type they are computed in ("float32", "float8").
    weight_bytes: all weights as stored. port_bytes: inputs and outputs.
    """

    operations: Mapping[str, float]
    weight_bytes: int
    port_bytes: int

    @property
    def total_operations(self) -> float:
        """Operations of all types."""
        return sum(self.operations.values())


@dataclass(frozen=True)
class Peak:
    """What a machine can do. operations: a second, by type. bandwidth: bytes a second. source: where that is from."""

    operations: Mapping[str, float]
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Limit:
    """The least seconds of one evaluation, and what sets them: "compute" or "memory"."""

    seconds: float
    bound: str


def limit_of(cost: Cost, peak: Peak) -> Limit:
    """The limit of a network on a machine. Raises BackendError where the machine's peak for a type is not known."""
    missing = sorted(set(cost.operations) - set(peak.operations))
    if missing:
        raise BackendError(f"no peak is known for {', '.join(missing)}; known: {', '.join(sorted(peak.operations))}")
    compute = sum(count / peak.operations[kind] for kind, count in cost.operations.items())
    memory = (cost.weight_bytes + cost.port_bytes) / peak.bandwidth
    return Limit(max(compute, memory), "compute" if compute >= memory else "memory")


def cost_of(model: bytes, sizes: Mapping[str, int]) -> Cost:
    """Count an ONNX model; its external data is not read.

    sizes: the value of every symbolic dimension of its inputs ("batch", "image_tokens", ...).
    Raises BackendError where it cannot be read, a shape is missing, or the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError("counting a network needs the package onnx: pip install 'arcflow[export]'") from error
    try:
        loaded = onnx.load_model_from_string(model)
        _set_sizes(loaded.graph, sizes)
        inferred = onnx.shape_inference.infer_shapes(loaded, data_prop=True)
    except BackendError:
        raise
    except Exception as error:  # protobuf's own errors, whose class depends on its implementation.
        raise BackendError(f"the network cannot be read as ONNX: {error}") from error
    return _Counter(inferred.graph).count()


def _set_sizes(graph: GraphProto, sizes: Mapping[str, int]) -> None:
    """Put numbers in place of symbolic dimensions, so that inference finds what the graph leaves out."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = evaluate(dim.dim_param, sizes)


class _Counter:
    """One pass over a graph: shapes and types by value, then the products."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes: dict[str, list[int]] = {name: list(t.dims) for name, t in self._initializers.items()}
        self._types: dict[str, int] = {name: t.data_type for name, t in self._initializers.items()}
        self._producers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        for value in (*graph.input, *graph.output, *graph.value_info):
            tensor = value.type.tensor_type
            self._types[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self._shapes.setdefault(value.name, [dim.dim_value for dim in tensor.shape.dim])

    def count(self) -> Cost:
        operations: dict[str, float] = {}
        counters: Mapping[str, Callable[[NodeProto], float]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
            "Attention": self._attention,
        }
        for node in self._graph.node:
            counter = counters.get(node.op_type)
            if counter is not None and node.domain in ("", "ai.onnx"):
                kind = self._kind(node)
                operations[kind] = operations.get(kind, 0.0) + counter(node)
        ports = [value.name for value in (*self._graph.input, *self._graph.output)]
        return Cost(
            operations=operations,
            weight_bytes=sum(self._bytes(name) for name in self._initializers),
            port_bytes=sum(self._bytes(name) for name in ports if name not in self._initializers),
        )

    def _matmul(self, node: NodeProto) -> float:
        """[..., n, k] x [..., k, m]: two operations for each element of the output and of k."""
        return 2.0 * math.prod(self._shape(node, node.output[0])) * self._shape(node, node.input[0])[-1]

    def _gemm(self, node: NodeProto) -> float:
        rows = self._shape(node, node.input[0])
        inner = rows[0] if _attribute(node, "transA") else rows[1]
        return 2.0 * math.prod(self._shape(node, node.output[0])) * inner

    def _conv(self, node: NodeProto) -> float:
        """Each output element is a product over the kernel and its group's input channels (weights [O, I/g, ...])."""
        return 2.0 * math.prod(self._shape(node, node.output[0])) * math.prod(self._shape(node, node.input[1])[1:])

    def _attention(self, node: NodeProto) -> float:
        """Scores and their product with the values, [batch, heads, tokens, width] or [batch, tokens, heads*width]."""
        query, key, value = (self._shape(node, name) for name in node.input[:3])
        # Heads times width is the product over all but batch and tokens in either layout.
        tokens, keys = (shape[-2] for shape in (query, key))
        return 2.0 * math.prod(query) * keys + 2.0 * math.prod(value) // keys * tokens * keys

    def _kind(self, node: NodeProto) -> str:
        """The type a product is computed in: E4M3 where both sides come out of 8-bit floats."""
        if all(self._is_float8(name) for name in node.input[:2]):
            return _FLOAT8
        return self._type_name(node.input[0])

    def _is_float8(self, name: str) -> bool:
        """Whether ``name`` is dequantised from an 8-bit float, through layout changes only."""
        node = self._producers.get(name)
        while node is not None and node.op_type in ("Transpose", "Reshape"):
            node = self._producers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear" and "FLOAT8" in self._raw_type(node.input[0])

    def _shape(self, node: NodeProto, name: str) -> list[int]:
        shape = self._shapes.get(name)
        if shape is None:
            raise BackendError(f"{node.op_type} {node.name!r}: the graph does not say the shape of {name!r}")
        return shape

    def _bytes(self, name: str) -> int:
        import onnx

        size = onnx.helper.tensor_dtype_to_np_dtype(self._types[name]).itemsize if name in self._types else 4
        return math.prod(self._shapes.get(name, [])) * int(size)

    def _raw_type(self, name: str) -> str:
        """ONNX's name of a value's type; of a value without one, that of what quantised it."""
        from onnx import TensorProto

        if name in self._types:
            return str(TensorProto.DataType.Name(self._types[name]))
        node = self._producers.get(name)
        if node is not None and node.op_type == "QuantizeLinear":
            given = _attribute(node, "output_dtype")
            return str(TensorProto.DataType.Name(given)) if given else self._raw_type(node.input[2])
        return "FLOAT"

    def _type_name(self, name: str) -> str:
        names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}
        return names.get(self._raw_type(name), "float32")


def evaluate(expression: str, sizes: Mapping[str, int]) -> int:
    """The value of a symbolic dimension such as ``8*rows`` or ``image_tokens + text_tokens``. Raises BackendError."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body, sizes)
    except (SyntaxError, KeyError, ZeroDivisionError, RecursionError) as error:
        known = ", ".join(sorted(sizes))
        raise BackendError(f"the dimension {expression!r} cannot be evaluated; known sizes: {known}") from error


def _evaluate(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
        case ast.Call(func=ast.Name(id="Max" | "max" | "Min" | "min" as name), args=args):
            return (max if name.lower() == "max" else min)(_evaluate(argument, sizes) for argument in args)
        case ast.Call(func=ast.Name(id="floor"), args=[argument]):
            return _evaluate(argument, sizes)
    raise KeyError(ast.dump(node))


def _attribute(node: NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)
