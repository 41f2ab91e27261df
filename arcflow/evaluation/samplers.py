"""Samplers run over many noises in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Advance = Callable[[str, int, int], None]
"""Progress: (what is being done, done, total)."""
Run = Callable[[Tensor, Any], tuple[Tensor, dict[float, Tensor]]]
"""A sampler: (noise, the architecture's condition) -> (x at sigma 0, {level: x there})."""
CHUNK = 60
"""Images that are sampled or decoded at once."""


@dataclass(frozen=True)
class Sampled:
    """A sampler's endpoints [N, S, C], and the states at noise levels on the way."""

    x: Tensor
    path: dict[float, Tensor]


def sampled(run: Run, noise: Tensor, condition: Any, name: str, advance: Advance, levels: Collection[float]) -> Sampled:
    """Run a sampler from all noises [N, S, C], keeping the path only at ``levels``."""
    ends, paths = [], []
    for rows in chunks(len(noise)):
        x, path = run(noise[rows], condition[rows])
        ends.append(x)
        paths.append({level: state for level, state in path.items() if level in levels})
        advance(name, rows.stop, len(noise))
    return Sampled(torch.cat(ends), {level: torch.cat([path[level] for path in paths]) for level in paths[0]})


def chunks(total: int) -> Iterator[slice]:
    """So many rows in parts of ``CHUNK`` at most."""
    return (slice(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK))
