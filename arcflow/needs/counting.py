"""What torch code takes while it runs, values or none: operations, bytes of its results, bytes alive at once."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""The CPU's kernels, whose operations torch does not count."""


class Counting(TorchDispatchMode):
    """Counts what runs under it.

    operations: multiplications and additions of matrix products, convolutions and attention; made, peak: bytes of all
    results, and the most that were alive together. given: what is no result, nor its views. times: how often all that
    runs now counts, 1 unless told otherwise.
    torch's own FlopCounterMode keeps what checkpointing lets go, so it cannot be used beside.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0.0
        self.made = self.peak = self._now = 0
        self.times = 1
        self._users = Counter(tensor.untyped_storage()._cdata for tensor in given)
        self._many: dict[int, int] = {}
        self._watching = False
        self._watched: dict[int, int] = {}

    def begin(self, times: int) -> None:
        """From here to :meth:`end` runs one of ``times`` that are alike, one after the other."""
        self.times, self._watching, self._watched = times, True, {}

    def end(self) -> None:
        self.times, self._watching = 1, False

    def keep(self, times: int) -> None:
        """What is still alive of what the last of these made is so of all ``times``, until this one's is let go."""
        for key, size in self._watched.items():
            self._many[key] = times
            self._now += size * (times - 1)
        self.peak, self._watched = max(self.peak, self._now), {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += self.times * _operations(func._overloadpacket, args, kwargs or {}, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.made += size * self.times
            self._now += size
            self.peak = max(self.peak, self._now)
            if self._watching:
                self._watched[key] = size
        self._users[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self._now -= size * self._many.pop(key, 1)
            self._watched.pop(key, None)


def _operations(packet: Any, args: Any, kwargs: Any, result: Any) -> float:
    if packet is _ATTENTION:
        return float(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if packet is _ATTENTION_BACKWARD:
        return float(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    count = flop_registry.get(packet)
    return float(count(*args, **kwargs, out_val=result)) if count is not None else 0.0
