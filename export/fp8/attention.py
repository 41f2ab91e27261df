"""What attention multiplies: watched for calibration, and put through FP8 in simulation.

torch's scaled_dot_product_attention is intercepted, whatever calls it: its calls come in the order of the graph's
Attention nodes, which is all that is needed to tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from export.fp8.numbers import FP8_MAX, activation_scale, fake_quantise

if TYPE_CHECKING:
    from torch import Tensor

    from export.fp8.observers import Observer

SIDES = ("query", "key", "value")

SOFTMAX_SCALE = 1.0 / FP8_MAX
"""Scale of the probabilities, which lie in [0, 1]: nothing is measured for them."""


class Watch:
    """Observers of queries, keys and values by ``<number of the call>.<side>``; made as calls come."""

    def __init__(self, observers: Mapping[str, Observer] | None = None) -> None:
        self.observers: dict[str, Observer] = dict(observers or {})
        self.calls = 0

    def restart(self) -> None:
        """To be called before each evaluation: the next call is the first attention again."""
        self.calls = 0

    def see(self, tensors: Sequence[Tensor], histogram: bool) -> None:
        """Take in one call's query, key and value."""
        from export.fp8.observers import Observer

        for side, tensor in zip(SIDES, tensors, strict=True):
            self.observers.setdefault(f"{self.calls}.{side}", Observer()).see(tensor, histogram)
        self.calls += 1


@contextmanager
def watched(watch: Watch, histogram: bool) -> Iterator[None]:
    """In the block, every scaled_dot_product_attention of this thread shows its inputs to ``watch``."""

    def attend(call: Any, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        watch.see((query, key, value), histogram)
        result: Tensor = call(query, key, value, **rest)
        return result

    with _intercepted(attend):
        yield


@contextmanager
def fake_attention(amax: Sequence[tuple[float, float, float]], shares: int = 1) -> Iterator[None]:
    """In the block, attention multiplies in FP8: query, key and value with one static scale each, probabilities too.

    amax: greatest magnitudes of (query, key, value) by attention, in the order of the calls of one evaluation; after
    the last the first comes again. shares: where there are more than one, the first of so many equal parts of a batch
    is left alone. Masks are added or applied as torch does; no dropout, no causal flag.
    """
    import torch

    count = 0

    def attend(call: Any, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> Tensor:
        nonlocal count
        bounds = amax[count % len(amax)]
        count += 1
        batch, mask = len(query), rest.get("attn_mask")
        alone = batch // shares if shares > 1 else 0
        parts = []
        for rows, one in ((slice(0, alone), call), (slice(alone, batch), partial(in_fp8, bounds))):
            if rows.stop > rows.start:
                own = mask if mask is None or mask.ndim < query.ndim or len(mask) == 1 else mask[rows]
                parts.append(one(query[rows], key[rows], value[rows], **{**rest, "attn_mask": own}))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def in_fp8(bounds: Any, *sides: Tensor, attn_mask: Tensor | None, **_: Any) -> Tensor:
        query, key, value = (
            fake_quantise(tensor, activation_scale(bound)) for tensor, bound in zip(sides, bounds, strict=True)
        )
        scores = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, float("-inf")) if boolean else scores + attn_mask
        result: Tensor = fake_quantise(scores.softmax(dim=-1).to(value.dtype), SOFTMAX_SCALE) @ value
        return result

    with _intercepted(attend):
        yield


@contextmanager
def _intercepted(attend: Any) -> Iterator[None]:
    from torch.nn.functional import scaled_dot_product_attention as original
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            rest = dict(kwargs or {})
            if func is not original:
                return func(*args, **rest)
            given = list(args[:3]) + [rest.pop(side) for side in SIDES[len(args) :]]
            names = ("attn_mask", "dropout_p", "is_causal")
            rest.update(zip(names, args[3:], strict=False))
            return attend(original, *given, rest)

    with Mode():
        yield
