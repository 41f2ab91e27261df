"""FP8 linears in torch, as the fastest published baselines have them: E4M3, one scale a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GREATEST = 448.0
"""The largest E4M3 value."""


class Fp8Linear(nn.Module):
    """A linear whose product is computed in E4M3. Made from a bfloat16 one that has a bias."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] bfloat16 -> [..., out] bfloat16."""
        rows, scale = quantise(x.reshape(-1, x.shape[-1]))
        product = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product.reshape(*x.shape[:-1], -1)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, in] as E4M3 and their scales [N, 1] float32."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / GREATEST
    return (x.float() / scale).clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn), scale


def to_fp8(model: nn.Module) -> int:
    """Replace the linears of the blocks' attention and MLPs in place; how many."""
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name and ".norm" not in name
    ]
    for name, module in chosen:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Fp8Linear(module))
    return len(chosen)
