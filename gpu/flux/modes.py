"""How the FLUX student is run in torch, by name. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Mode:
    """How the network is run.

    network: "diffusers" is its own, "plain" the same in plain torch, "fused" has the products of one input side by
    side; compiled: nothing, each "block", or the "whole" of it; attention: torch's choice, cuDNN's through torch, or
    cuDNN's in FP8; fp8: linears of the blocks in E4M3 with static scales; graph: an image is one CUDA graph; solver:
    the closed form in torch, or the runtime's own kernel; image: text encoders and VAE decoder as well; published:
    milliseconds an evaluation on an H100 that others report for the teacher run so.
    """

    network: Literal["plain", "fused", "diffusers"] = "plain"
    compiled: Literal["block", "whole"] | None = None
    attention: Literal["torch", "cudnn", "fp8"] = "torch"
    fp8: bool = False
    graph: bool = False
    solver: Literal["torch", "kernel"] = "torch"
    autotune: bool = False
    image: bool = False
    published: float | None = None


_BEST = Mode("fused", "block", "cudnn", fp8=True, graph=True, solver="kernel")

MODES: Mapping[str, Mode] = {
    "eager": Mode(published=235.0),
    "diffusers": Mode("diffusers", published=235.0),
    "blocks": Mode(compiled="block"),
    "fused": Mode("fused"),
    "cudnn": replace(_BEST, fp8=False),
    "fp8": replace(_BEST, published=106.0),
    "fp8-attention": replace(_BEST, attention="fp8"),
    "image": replace(_BEST, image=True),
    "autotune": replace(_BEST, autotune=True),
    "whole": Mode(compiled="whole", published=150.0),
}
USUAL = ("eager", "fp8", "cudnn", "image", "fp8-attention", "blocks", "diffusers")
"""In this order: the most telling first. "whole" compiles 57 blocks one after the other, for minutes; "autotune" tries
every product in many ways."""
