"""Frozen weights that are stored in FP8: half of bfloat16's bytes, widened layer by layer while they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcflow.sources.fp8 import from_codes, quantise_rows


class Fp8Linear(nn.Linear):
    """A frozen linear whose weight is float8_e4m3fn [out, in] with ``weight_scale`` [out, 1] float32; its bias stays.

    Computes in the input's dtype, under autocast in autocast's, with the weight widened to it. Nothing of the widened
    weight is kept for the backward, which makes it again for the gradient of the input. Move it between devices, but
    do not cast it.
    """

    SCALE = "weight_scale"
    """The parameter that comes with the weight."""

    def __init__(self, linear: nn.Linear, name: str = "a linear") -> None:
        """Store ``linear``, which may be on torch's meta device. Raises BackboneError: see ``quantise_rows``."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        codes, scales = quantise_rows(linear.weight.detach(), f"{name}.weight")
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(scales, requires_grad=False)
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        bias: Tensor | None = self.bias  # torch's own annotation forgets that there may be none
        bias = None if bias is None else bias.to(dtype)
        result: Tensor = _Product.apply(input.to(dtype), self.weight, self.weight_scale, bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    """The product with a stored weight, which has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        return functional.linear(x, from_codes(codes, scales, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        return grad @ _widened_again(codes, scales, grad), None, None, None


@torch.library.custom_op("arcflow::widened_again", mutates_args=())
def _widened_again(codes: Tensor, scales: Tensor, grad: Tensor) -> Tensor:
    """A weight in ``grad``'s dtype: an operator that waits for ``grad``, for torch.compile would keep the forward's."""
    return from_codes(codes, scales, grad.dtype)


@_widened_again.register_fake
def _(codes: Tensor, scales: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=grad.dtype)


def store_linears(backbone: nn.Module) -> None:
    """Swap every linear in a backbone's blocks for a :class:`Fp8Linear`, in place, one after the other.

    backbone: with values or on torch's meta device, before LoRA is put on it. Norms, and what lies outside the blocks
    (embedders, last layers), stay as they are. Raises BackboneError where a weight is not finite.
    """
    blocks = {name for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)}
    linears = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    for name in linears:
        if name.partition(".")[0] in blocks:
            backbone.set_submodule(name, Fp8Linear(backbone.get_submodule(name), name))  # type: ignore[arg-type]


def as_frozen(backbone: nn.Module, frozen: str) -> nn.Module:
    """A frozen backbone, in place, in what a recipe's ``frozen`` says: "fp32" (as it is), "bf16" or "fp8"."""
    if frozen != "fp32":
        for parameter in backbone.parameters():
            parameter.data = parameter.data.bfloat16()
    if frozen == "fp8":
        store_linears(backbone)
    return backbone
