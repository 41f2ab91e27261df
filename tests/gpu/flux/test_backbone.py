"""The baseline's own FLUX in plain torch against diffusers', under the same weights; its size and operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu.flux.backbone import Backbone, BackboneSize, inputs

SMALL = BackboneSize(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=16,
    joint_attention_dim=24,
    pooled_projection_dim=20,
    axes_dims_rope=(4, 6, 6),
    modes=4,
)


def _theirs(size: BackboneSize) -> Any:
    from arcflow.students import build_student

    names = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "in_channels")
    names += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
    config = {name: getattr(size, name) for name in names}
    return build_student(config | {"patch_size": 1, "guidance_embeds": True}, size.modes)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_same_weights_give_diffusers_field(dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    ours, theirs = Backbone(SMALL).eval(), _theirs(SMALL).eval()
    for parameter in ours.parameters():
        parameter.normal_(0.0, 0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    arguments: dict[str, Any] = dict(inputs(SMALL, 3, 5, "cpu", dtype))
    arguments |= {"hidden_states": torch.randn(1, 9, 16, dtype=dtype), "timestep": torch.tensor([0.76], dtype=dtype)}
    mine, other = ours(**arguments)[0], theirs(**arguments, return_dict=False)[0]
    for name in ("means", "logweights", "loggammas"):
        a, b = getattr(mine, name), getattr(other, name)
        assert a.shape == b.shape and a.dtype == b.dtype
        assert float((a - b).norm() / b.norm()) < limit, name


def test_at_full_size_it_has_the_students_parameters() -> None:
    with torch.device("meta"):
        ours, theirs = Backbone(BackboneSize()), _theirs(BackboneSize())
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(11.905e9, rel=1e-3)
