"""What an iteration of distillation trains on: prompts, an image size, and noise, each drawn from its place alone.

An image's draws depend on the seed, the iteration and its place in the batch of all processes, so that the number of
processes changes nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arcflow.prompts.encodings import Encodings
from arcflow.sampling import ClassifierFree
from arcflow.sources.text import Encoding
from arcflow.training.loop import Iteration

AHEAD = 64
"""Iterations whose prompts are encoded in one turn where text encoders and backbone take turns on a device."""

Generators = Sequence[torch.Generator]
"""One an image of this process's batch."""


@dataclass(frozen=True)
class Batch:
    """The conditions of a batch, on the CPU. guidance: that of a teacher which has none as an input."""

    condition: Any
    guidance: ClassifierFree | None = None


Batches = Callable[[Iteration, Generators], Batch]
"""(iteration, generators of some of this process's images) -> their batch; takes one draw of each generator."""


def uniform(generators: Generators, *shape: int) -> Tensor:
    """Uniform draws [B, *shape] in [0, 1), a row from each generator."""
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def normal(generators: Generators, *shape: int) -> Tensor:
    """Normal draws [B, *shape], a row from each generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def prompted(
    architecture: Any,
    encodings: Encodings,
    guidance: tuple[str, float],
    grids: Sequence[tuple[int, int]],
) -> Batches:
    """Batches of encoded prompts, uniform over all of them, for images of one of the sizes.

    guidance: the recipe's kind ("embedded" or "cfg") and value; grids: (rows, columns) of image tokens.
    """

    def draw(it: Iteration, generators: Generators) -> Batch:
        def coming() -> Iterator[int]:
            for later in range(it.index, it.index + 1 + AHEAD):
                yield from _numbers(it.at(later).rows(), len(encodings))

        found = encodings.get(_numbers(generators, len(encodings)), coming)
        grid = grids[int(torch.randint(len(grids), (1,), generator=it.shared()))]
        return conditioned(architecture, found, encodings, guidance, grid)

    return draw


def conditioned(
    architecture: Any,
    found: Sequence[Encoding],
    encodings: Encodings,
    guidance: tuple[str, float],
    grid: tuple[int, int],
) -> Batch:
    """The batch of encoded prompts for images of one size; of ``encodings`` the empty prompt is taken, if need be."""
    kind, scale = guidance
    condition = architecture.condition(found, scale, *grid)
    if kind == "embedded":
        return Batch(condition)
    return Batch(condition, ClassifierFree(scale, architecture.condition([encodings.empty()], scale, *grid)))


def _numbers(generators: Generators, count: int) -> list[int]:
    return [int(torch.randint(count, (1,), generator=generator)) for generator in generators]
