"""FP8 simulated in torch: a backbone computes what its FP8 graph computes, without a graph.

Weights keep what a scale per row leaves of them, inputs what one static scale leaves. As in the graph, only linears are
touched, sums are not, and the result has the type the layer computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.fp8.numbers import activation_scale, fake_quantise, fake_quantise_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

_HOOKED = "_old_forward"
"""Where accelerate's hooks (see :mod:`export.networks.streaming`) keep a module's own forward."""


@contextmanager
def fake_quantised(network: nn.Module, amax: Mapping[str, float | None]) -> Iterator[nn.Module]:
    """In the block, the linears named in ``amax`` compute in FP8; afterwards they are as before.

    amax: by layer (state-dict name without ``.weight``), the greatest input magnitude that is kept; None where only the
    weight is in FP8. Weights are quantised as each layer runs, with scales stored in its own type. Raises ExportError
    for what is no linear.
    """
    modules = {name: _linear(network, name) for name in amax}
    before = {name: vars(module).get(_slot(module)) for name, module in modules.items()}
    try:
        for name, module in modules.items():
            bound = amax[name]
            setattr(module, _slot(module), _forward(module, None if bound is None else activation_scale(bound)))
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


def _forward(module: Any, scale: float | None) -> Any:
    from torch.nn import functional

    def forward(x: Tensor) -> Tensor:
        weight = fake_quantise_rows(module.weight, module.weight.dtype).to(module.weight.dtype)
        return functional.linear(x if scale is None else fake_quantise(x, scale), weight, module.bias)

    return forward
