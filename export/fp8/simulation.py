"""FP8 simulated in torch: a backbone computes what its FP8 graph computes, without a graph.

Weights keep what a scale per row leaves of them, inputs what one static scale leaves. As in the graph, only linears are
touched, sums are not, and the result has the type the layer computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.fp8.numbers import activation_scale, fake_quantise, fake_quantise_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

Bounds = Mapping[str, float | None]
"""By layer (state-dict name without ``.weight``) that is in FP8, the greatest input magnitude that is kept; None where
only the weight is in FP8."""

Watch = Callable[[str, "Tensor", "Tensor"], None]
"""Told of a layer that ran: its name, what it gave for some tokens, and what it gives for them in FP8."""

_HOOKED = "_old_forward"
"""Where accelerate's hooks (see :mod:`export.networks.streaming`) keep a module's own forward."""

_WATCHED = 8
"""Of this many tokens, one is computed in both ways for who watches."""


@contextmanager
def fake_quantised(network: nn.Module, *shares: Bounds, watch: Watch | None = None) -> Iterator[nn.Module]:
    """In the block, the linears named in ``shares`` compute in FP8; afterwards they are as before.

    shares: a batch is cut into as many equal parts, each with bounds of its own, so that a student and what FP8 makes
    of it run beside each other while each layer's weights are read once; ``{}`` for a part that FP8 leaves alone.
    watch: told of every such layer, by tokens of the first part. Weights are quantised as each layer runs, with scales
    stored in its own type. Raises ExportError for what is no linear.
    """
    modules = {name: _linear(network, name) for bounds in shares for name in bounds}
    before = {name: vars(module).get(_slot(module)) for name, module in modules.items()}
    try:
        for name, module in modules.items():
            setattr(module, _slot(module), _forward(name, module, shares, watch))
        yield network
    finally:
        for name, module in modules.items():
            if before[name] is None:
                vars(module).pop(_slot(module), None)
            else:
                setattr(module, _slot(module), before[name])


def _linear(network: nn.Module, name: str) -> Any:
    from torch import nn

    try:
        module = network.get_submodule(name)
    except AttributeError as error:
        raise ExportError(f"the backbone has no layer {name}; the calibration belongs to another student") from error
    if not isinstance(module, nn.Linear):
        raise ExportError(f"{name} is a {type(module).__name__}; only linears are quantised")
    return module


def _slot(module: nn.Module) -> str:
    return _HOOKED if hasattr(module, _HOOKED) else "forward"


def _forward(name: str, module: Any, shares: Sequence[Bounds], watch: Watch | None) -> Any:
    import torch
    from torch.nn import functional

    def forward(x: Tensor) -> Tensor:
        weight = fake_quantise_rows(module.weight, module.weight.dtype).to(module.weight.dtype)

        def in_fp8(part: Tensor, bound: float | None) -> Tensor:
            seen = part if bound is None else fake_quantise(part, activation_scale(bound))
            return functional.linear(seen, weight, module.bias)

        def alone(part: Tensor) -> Tensor:
            return functional.linear(part, module.weight, module.bias)

        parts = x.chunk(len(shares))
        given = [
            in_fp8(part, bounds[name]) if name in bounds else alone(part)
            for part, bounds in zip(parts, shares, strict=True)
        ]
        if watch is not None:
            some = parts[0].flatten(0, -2)[::_WATCHED]
            bound = next(bounds[name] for bounds in shares if name in bounds)
            watch(name, alone(some), in_fp8(some, bound))
        return given[0] if len(given) == 1 else torch.cat(given)

    return forward
