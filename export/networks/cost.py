"""What running a network takes, found by running it without values: operations, bytes made, bytes alive at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from arcflow.needs.counting import Counting
from export.networks.base import Network


@dataclass(frozen=True)
class Cost:
    """One call of a network in float32. operations: multiplications and additions; made: bytes of all results;
    peak: greatest number of bytes of results alive together, weights not counted."""

    operations: float
    made: int
    peak: int


def cost_of(network: Network, sizes: Mapping[str, int], heads: Container[int] | None = None) -> Cost:
    """The cost of a call at these sizes (of every symbolic dimension). Takes no memory to speak of.

    heads: their sizes of which attention is one kernel, None for all.
    """
    with torch.device("meta"), torch.no_grad():
        module = network.build(torch.float32).eval()
        inputs = {
            name: torch.empty([sizes[d] if isinstance(d, str) else d for d in shape], dtype=getattr(torch, kind))
            for name, (kind, shape) in network.ports_in.items()
        }
        given = [*module.parameters(), *module.buffers(), *inputs.values()]
        with Counting(given) as counted, _FusedAttention(heads) as attention:
            module(**inputs)
    return Cost(counted.operations + attention.operations, counted.made, counted.peak)


class _FusedAttention(TorchFunctionMode):
    """Attention as the CPU runs it, in one kernel where rows are contiguous: else the matrix of all scores is made.

    heads: their sizes of which it is one kernel; None for all.
    """

    def __init__(self, heads: Container[int] | None) -> None:
        super().__init__()
        self.operations = 0.0
        self._heads = heads

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        one_kernel = self._heads is None or query.shape[-1] in self._heads
        if not one_kernel or any(tensor.stride(-1) != 1 for tensor in (query, key, value)):
            return func(*args, **(kwargs or {}))
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        self.operations += 2.0 * scores * (query.shape[-1] + value.shape[-1])
        return query.new_empty((*query.shape[:-1], value.shape[-1]))
