"""The optimiser of a training run: AdamW, its moments in float32 or, from torchao, in 8 bits."""

from __future__ import annotations

from typing import Any

import torch

from arcflow.errors import RecipeError
from arcflow.recipe import LoopConfig


def make_optimizer(groups: list[dict[str, Any]], config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW over parameter groups. Raises RecipeError where moments in 8 bits are wanted and torchao is not there."""
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings)
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise RecipeError(
            f'optimizer is "{config.optimizer}", which needs torchao ({error}): `pip install torchao`, or '
            'set optimizer to "adamw"'
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **settings)
    return optimizer
