"""The teacher of the embedded default: FLUX's transformer, small: flow matching, then guidance distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from arcflow.architectures.flux import Condition, evaluate, image_ids
from arcflow.recipe import LoopConfig, TransformerSize
from arcflow.schedule import shift_sigma
from arcflow.tiny.text import WIDTH, TextEncoders, TokenTable
from arcflow.training.loop import Iteration

CAPTION_DROPOUT = 0.1
Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""
SIDE = 4
"""Image tokens along each side of an image of the usual size."""
USUAL: Grid = (SIDE, SIDE)
UNGUIDED = 1.0
"""Guidance input that means "no guidance": the plain conditional velocity."""


def build_transformer(size: TransformerSize, packed_channels: int) -> FluxTransformer2DModel:
    """An untrained FLUX transformer with modulations and ``proj_out`` at zero (each block starts as the identity)."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=packed_channels,
        num_layers=size.double_blocks,
        num_single_layers=size.single_blocks,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=size.rope,
    )
    norms = ("norm1", "norm1_context", "norm")
    modulations = [m.linear for n, m in model.named_modules() if n.endswith(norms) and hasattr(m, "linear")]
    for linear in (*modulations, model.norm_out.linear, model.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return model


class TeacherNetworks(nn.Module):
    """What is trained together: the transformer and both text encoders."""

    def __init__(self, transformer: FluxTransformer2DModel, text: TextEncoders) -> None:
        super().__init__()
        self.transformer = transformer
        self.text = text

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        guidance: Tensor,
        clip_ids: Tensor,
        t5_ids: Tensor,
        grid: Grid = USUAL,
    ) -> Tensor:
        """Velocity [B, S, C] at noise level ``sigma`` [B] under ``guidance`` [B], of S tokens in a grid."""
        pooled, sequence = self.text(clip_ids, t5_ids)
        return velocity(self.transformer, x, sigma, guidance, pooled, sequence, grid)


def condition_of(pooled: Tensor, sequence: Tensor, guidance: Tensor, grid: Grid = USUAL) -> Condition:
    """The condition of encoded prompts, for an image whose tokens lie in that grid."""
    return Condition(pooled, sequence, guidance, image_ids(*grid), torch.zeros(sequence.shape[1], 3))


def velocity(
    transformer: nn.Module,
    x: Tensor,
    sigma: Tensor,
    guidance: Tensor,
    pooled: Tensor,
    sequence: Tensor,
    grid: Grid = USUAL,
) -> Tensor:
    """The transformer's velocity of an image whose tokens lie in that grid."""
    output: Tensor = evaluate(transformer, x, sigma, condition_of(pooled, sequence, guidance, grid))
    return output


@dataclass(frozen=True)
class Batch:
    """x0: packed latents [B, S, C]; rows: captions [B] of a table, of which 0 is the empty one; grid: of the tokens."""

    x0: Tensor
    rows: Tensor
    grid: Grid = USUAL


class Latents(Protocol):
    """Encoded images with captions, to draw from."""

    def sample(self, table: TokenTable, count: int, it: Iteration) -> Batch:
        """A batch for one iteration; a caption is dropped with a chance of ``CAPTION_DROPOUT``."""


def flow_step(data: Latents, table: TokenTable, shift: float, config: LoopConfig) -> Any:
    """Stage 1: flow matching, loss = mean squared error of the velocity ``eps - x0`` at shifted uniform times."""

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        batch = data.sample(table, config.batch, it)
        x0, rows = batch.x0, batch.rows
        eps = torch.randn(x0.shape, generator=it.generator)
        sigma = shift_sigma(torch.rand(config.batch, generator=it.generator), shift)
        x = torch.lerp(x0, eps, sigma[:, None, None])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            u = module(
                x,
                sigma,
                torch.full_like(sigma, UNGUIDED),
                table.clip[rows],
                table.t5[rows],
                batch.grid,
            )
        loss = (u.float() - (eps - x0)).square().mean()
        loss.backward()
        return {"loss": float(loss.detach())}

    return step


def guidance_step(
    data: Latents,
    table: TokenTable,
    base: FluxTransformer2DModel,
    encoded: tuple[Tensor, Tensor],
    shift: float,
    bounds: tuple[float, float],
    config: LoopConfig,
) -> Any:
    """Stage 2: one forward learns ``u_empty + g * (u_caption - u_empty)`` for g uniform in ``bounds``.

    base: the frozen stage-1 transformer; encoded: (pooled, sequence) of the table by the frozen text encoders.
    (Meng et al., arXiv 2210.03142, as FLUX.1-dev has it built in.)
    """
    pooled, sequence = encoded

    def step(module: nn.Module, it: Iteration) -> dict[str, float]:
        batch = data.sample(table, config.batch, it)
        x0, rows = batch.x0, batch.rows
        eps = torch.randn(x0.shape, generator=it.generator)
        sigma = shift_sigma(torch.rand(config.batch, generator=it.generator), shift)
        g = torch.empty(config.batch).uniform_(*bounds, generator=it.generator)
        x = torch.lerp(x0, eps, sigma[:, None, None])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                both = torch.cat([rows, torch.zeros_like(rows)])
                twice = torch.cat([sigma, sigma])
                u = velocity(
                    base,
                    torch.cat([x, x]),
                    twice,
                    torch.full_like(twice, UNGUIDED),
                    pooled[both],
                    sequence[both],
                    batch.grid,
                )
                u_caption, u_empty = u.float().chunk(2)
                target = u_empty + g[:, None, None] * (u_caption - u_empty)
            u = velocity(module, x, sigma, g, pooled[rows], sequence[rows], batch.grid)
        loss = (u.float() - target).square().mean()
        loss.backward()
        return {"loss": float(loss.detach())}

    return step
