"""What a plan is made of: layers by precision, the share of matrix products in FP8, attention.

Where a GPU can open the plan, the engine inspector says what the builder made of it (:func:`inspect_plan`). Elsewhere
the parsed network is counted (:func:`count_network`): typed strictly, it fixes what every layer computes in, but not
which layers the builder fuses.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.schema import PlanMemory
from export.tensorrt.flavours import Toolkit, local_capabilities
from export.tensorrt.profiles import Profile

if TYPE_CHECKING:
    from rich.table import Table

NETWORK = "parsed network"
INSPECTOR = "engine inspector"

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8"}
"""The builder's names of the types that count as a layer's precision; all others are whole numbers or truth values."""

_PASSING = ("SHUFFLE", "UNSQUEEZE", "SQUEEZE", "CAST", "IDENTITY")
"""Layers through which a constant, or a value in FP8, reaches a matrix product unchanged."""

_ORDER = ("float8", "float16", "bfloat16", "float32")
_WORDS = {"float32": ("float",), "float16": ("half",), "bfloat16": ("bf16", "bfloat16"), "float8": ("fp8", "e4m3")}


@dataclass(frozen=True)
class Gemms:
    """Matrix products with weights. parameters: elements of the weights; fp8...: of those whose inputs are both FP8."""

    count: int
    fp8: int
    parameters: int
    fp8_parameters: int

    @property
    def fp8_share(self) -> float:
        """Part of the weights' elements that FP8 multiplies, in [0, 1]."""
        return self.fp8_parameters / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Layers:
    """Counts of one network's layers, and where they come from (NETWORK or INSPECTOR).

    precisions: layers by the floating type they put out; attention: all of them; attention_fused: those that are one
    kernel for certain; fp8_attention: those whose inputs are FP8. gemms, and constant_bytes (of all constants: nearly
    the plan's size), are always of the parsed network.
    """

    source: str
    precisions: Mapping[str, int]
    gemms: Gemms
    attention: int
    attention_fused: int
    fp8_attention: int
    constant_bytes: int = 0


@dataclass(frozen=True)
class PlanReport:
    """A plan that was built: where, its bytes and sha256, by what, for which shapes, in what time, made of what.

    memory: what it takes of a GPU, None where the builder did not say.
    """

    network: str
    path: Path
    size: int
    sha256: str
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    opt_level: int
    seconds: float
    warnings: int
    layers: Layers
    memory: PlanMemory | None
    profile: Profile = field(repr=False)


def count_network(network: Any, strict_attention: int) -> Layers:
    """Count a parsed, strongly typed INetworkDefinition; strict_attention: those that must become one kernel."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    precisions: Counter[str] = Counter()
    products, attention, constant_bytes = [], [], 0
    for layer in layers:
        kind = layer.type.name
        if kind == "CONSTANT":
            tensor = layer.get_output(0)
            constant_bytes += _volume(tensor) * int(getattr(tensor.dtype, "itemsize", 1))
        if kind == "CONSTANT" or not layer.num_outputs:
            continue
        name = _TYPES.get(layer.get_output(0).dtype.name)
        if name is not None:
            precisions[name] += 1
        if kind == "MATRIX_MULTIPLY":
            products.append(layer)
        elif kind == "ATTENTION_INPUT":
            attention.append(layer)
    fp8_attention = sum(all(_dequantised(layer.get_input(i), producers) for i in range(2)) for layer in attention)
    gemms = _count_gemms(products, producers)
    return Layers(NETWORK, dict(precisions), gemms, len(attention), strict_attention, fp8_attention, constant_bytes)


def _count_gemms(products: list[Any], producers: Mapping[str, Any]) -> Gemms:
    count = fp8 = parameters = fp8_parameters = 0
    for layer in products:
        sizes = [_weight_size(layer.get_input(i), producers) for i in range(2)]
        size = max(sizes)
        if not size:
            continue
        count, parameters = count + 1, parameters + size
        if all(_dequantised(layer.get_input(i), producers) for i in range(2)):
            fp8, fp8_parameters = fp8 + 1, fp8_parameters + size
    return Gemms(count, fp8, parameters, fp8_parameters)


def _weight_size(tensor: Any, producers: Mapping[str, Any]) -> int:
    """Elements of the constant that ``tensor`` is made from; 0 where it is made from something else."""
    layer = producers.get(tensor.name)
    while layer is not None and layer.type.name in (*_PASSING, "DEQUANTIZE"):
        layer = producers.get(layer.get_input(0).name)
    if layer is None or layer.type.name != "CONSTANT":
        return 0
    return _volume(layer.get_output(0))


def _volume(tensor: Any) -> int:
    return math.prod(int(extent) for extent in tensor.shape)


def _dequantised(tensor: Any, producers: Mapping[str, Any]) -> bool:
    """Whether ``tensor`` is an FP8 value, dequantised."""
    layer = producers.get(tensor.name)
    while layer is not None and layer.type.name in _PASSING:
        layer = producers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "FP8"


def inspect_plan(toolkit: Toolkit, plan: Path, capabilities: tuple[str, ...], parsed: Layers) -> Layers:
    """The counts of the built plan, if a GPU that it is for is here and opens it; else ``parsed`` as it is."""
    if not set(capabilities) & set(local_capabilities()):
        return parsed
    trt = toolkit.trt
    engine = trt.Runtime(toolkit.logger).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        return parsed
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return read_inspector(text, parsed)


def read_inspector(text: str, parsed: Layers) -> Layers:
    """Counts from the engine inspector's JSON of TensorRT 10 or 11; ``parsed`` gives what it does not say.

    A layer without details (a bare name) counts for attention only.
    """
    precisions: Counter[str] = Counter()
    attention = 0
    for layer in json.loads(text).get("Layers", []):
        entry: dict[str, Any] = layer if isinstance(layer, dict) else {"Name": str(layer)}
        words = " ".join(str(entry.get(key, "")) for key in ("Name", "TacticName", "LayerType")).lower()
        attention += any(word in words for word in ("mha", "attention"))
        outputs = entry.get("Outputs") or [{}]
        type_name = " ".join(str(outputs[0].get(key, "")) for key in ("Format/Datatype", "DataType")).lower()
        for name, spellings in _WORDS.items():
            if any(spelling in type_name for spelling in spellings) and not (name == "float32" and "bf" in type_name):
                precisions[name] += 1
                break
    fused = attention or parsed.attention_fused
    return replace(parsed, source=INSPECTOR, precisions=dict(precisions), attention_fused=fused)


def report_table(reports: Sequence[PlanReport]) -> Table:
    """One row a plan: size, time, layers by precision, and how many

    - of the weights' matrix products are in FP8 (with the part of the weights' elements that is),
    - of the attention layers are one kernel for certain.
    """
    from rich.table import Table

    sources = sorted({report.layers.source for report in reports})
    caption = f"layers counted by: {', '.join(sources)}"
    if NETWORK in sources:
        caption += " (no GPU here opens these plans: what the builder fused is not seen)"
    table = Table(title="plans", caption=caption)
    for heading in ("plan", "MB", "seconds", "layers by type", "weights in FP8", "one-kernel attention", "warnings"):
        table.add_column(heading, justify="left" if heading in ("plan", "layers by type") else "right")
    for report in reports:
        layers = report.layers
        gemms = layers.gemms
        table.add_row(
            report.network,
            f"{report.size / 1e6:,.1f}",
            f"{report.seconds:,.1f}",
            " ".join(f"{name} {layers.precisions[name]}" for name in _ORDER if name in layers.precisions),
            f"{gemms.fp8}/{gemms.count} ({gemms.fp8_share:.1%})",
            f"{layers.attention_fused}/{layers.attention}",
            str(report.warnings),
        )
    return table
