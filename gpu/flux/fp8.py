"""FP8 in torch as the engines have it: E4M3, weights with one scale an output channel, activations with one static one.

The scales of activations are greatest magnitudes over 448, seen in an image of the same student before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gpu.flux.attention import GREATEST, Fp8Attend
from gpu.flux.fused import Attend, FusedBackbone, Projection

Bounds = Mapping[str, tuple[float, ...]]
"""Greatest magnitudes by module: of a projection's input; of an attention's q, k, v and result."""


class Fp8Projection(nn.Module):
    """A projection whose product is computed in E4M3. [..., in] -> [..., out] bfloat16.

    Scales are tensors, so that one compiled block serves all: numbers would be constants of each.
    """

    weight: Tensor
    channels: Tensor
    step: Tensor
    one: Tensor
    bias: Tensor

    def __init__(self, projection: Projection, bound: float) -> None:
        super().__init__()
        rows = projection.weight.float()
        channels = (rows.abs().amax(dim=1) / GREATEST).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", to_e4m3(rows / channels[:, None]))
        self.register_buffer("channels", channels)
        self.register_buffer("step", torch.full((), scale_of(bound), device=rows.device))
        self.register_buffer("one", torch.ones((), device=rows.device))
        self.register_buffer("bias", projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = to_e4m3(x.reshape(-1, x.shape[-1]).float() / self.step)
        product = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=self.step,
            scale_b=self.one,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        # The channels' scales go with the bias into whatever follows, which is compiled into one kernel with them.
        out = torch.addcmul(self.bias.float(), product.float(), self.channels).to(x.dtype)
        return out.reshape(*x.shape[:-1], -1)


def scale_of(bound: float) -> float:
    """The scale that keeps magnitudes up to ``bound``; 1 where that is zero."""
    return bound / GREATEST if bound > 0 else 1.0


def to_e4m3(values: Tensor) -> Tensor:
    """Saturating, to nearest even."""
    return values.clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn)


def measure_bounds(model: FusedBackbone, generate: Callable[[], object]) -> Bounds:
    """The greatest magnitudes while ``generate`` runs the model."""
    seen: dict[str, list[Tensor]] = {}

    def see(name: str, tensors: tuple[Tensor, ...]) -> None:
        now = [tensor.detach().abs().amax().float() for tensor in tensors]
        seen[name] = [torch.maximum(a, b) for a, b in zip(seen.get(name, now), now, strict=True)]

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            hooks.append(module.register_forward_pre_hook(lambda _, given, name=name: see(name, given)))
        elif isinstance(module, Attend):
            hooks.append(module.register_forward_hook(lambda _, given, out, name=name: see(name, (*given, out))))
    try:
        generate()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tuple(float(bound) for bound in bounds) for name, bounds in seen.items()}


def to_fp8(model: FusedBackbone, bounds: Bounds, attention: bool) -> int:
    """Replace the projections of the blocks in place, and their attention where asked for; how many projections."""
    replaced = 0
    for name in [name for name, _ in model.named_modules()]:  # By name: a weight goes as its twin comes.
        module, (parent, _, own) = model.get_submodule(name), name.rpartition(".")
        if isinstance(module, Projection):
            setattr(model.get_submodule(parent), own, Fp8Projection(module, *bounds[name]))
            replaced += 1
        elif isinstance(module, Attend) and attention:
            scales = [scale_of(bound) for bound in bounds[name]]
            setattr(model.get_submodule(parent), own, Fp8Attend(scales, next(model.buffers()).device))
    return replaced
