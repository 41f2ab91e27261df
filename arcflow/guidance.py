"""Guidance of the teacher: an input of the backbone (FLUX.1-dev), or two evaluations (Qwen-Image)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.conditioning import ConditioningDtype


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (arXiv 2207.12598), for teachers without a guidance input.

    scale: 1 is no guidance; empty: the architecture's condition of one empty prompt, of any number of text tokens.
    """

    scale: float
    empty: Any


@torch.no_grad()
def teacher_velocity(
    architecture: Any,
    teacher: nn.Module,
    x: Tensor,
    sigma: Tensor,
    condition: Any,
    guidance: ClassifierFree | None = None,
    trained: ConditioningDtype = "float32",
) -> Tensor:
    """The teacher's velocity [B, S, C] at ``x`` [B, S, C] and noise levels ``sigma`` [B].

    Without ``guidance`` one evaluation: what guidance there is, is part of the condition. With it two, and
    ``u_empty + scale * (u - u_empty)``; the length of a token's velocity is left as it comes out (diffusers' pipeline
    of Qwen-Image scales it back, the method does not). trained: see ``evaluate`` of the architecture.
    """
    u: Tensor = architecture.evaluate(teacher, x, sigma, condition, trained)
    if guidance is None:
        return u
    empty = guidance.empty[torch.zeros(x.shape[0], dtype=torch.long)].to(x.device)
    u_empty: Tensor = architecture.evaluate(teacher, x, sigma, empty, trained)
    return u_empty + guidance.scale * (u - u_empty)
