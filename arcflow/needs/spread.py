"""Training spread over GPUs: which share of the weights each of them has, and bytes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from arcflow.errors import RecipeError

_BLOCK, _LEAST, _TABLE = 256, 4096, 256
"""torchao's 8-bit moments: numbers that share a float32 scale, fewest numbers that are stored so, entries of the
float32 table that comes with each moment of each parameter."""


@dataclass(frozen=True)
class Spread:
    """gpus > 0; shard: each has a share of all weights, gradients, moments and averages, not all of them.

    Raises RecipeError.
    """

    gpus: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise RecipeError(f"--gpus is {self.gpus}: it must be 1 or more")
        if self.shard and self.gpus == 1:
            raise RecipeError("--shard shares weights between GPUs: give --gpus 2 or more, or leave --shard out")

    @property
    def parts(self) -> int:
        """How many GPUs share the weights."""
        return self.gpus if self.shard else 1


@dataclass(frozen=True)
class Weight:
    """A parameter without its values. itemsize: bytes a number."""

    shape: tuple[int, ...]
    itemsize: int
    trained: bool

    def count(self, parts: int = 1) -> int:
        """Numbers of it on a GPU where ``parts`` of them share its rows: the first one's, which has the most."""
        rows, *others = self.shape or (1,)
        return math.ceil(rows / parts) * math.prod(others)


def size(weights: Iterable[Weight], parts: int = 1) -> int:
    """Bytes of weights on a GPU where ``parts`` of them share each."""
    return sum(weight.count(parts) * weight.itemsize for weight in weights)


def moments(trained: Iterable[Weight], parts: int, optimizer: str) -> int:
    """Bytes of AdamW's two moments on a GPU: float32, or as torchao's AdamW8bit stores them.

    That is a byte a number, a scale for 256 numbers and a table of 1 KiB each; in float32 what has fewer than 4,096
    numbers there or no whole blocks.
    """
    counts = [weight.count(parts) for weight in trained]
    if optimizer == "adamw":
        return sum(2 * 4 * count for count in counts)
    stored = (count >= _LEAST and count % _BLOCK == 0 for count in counts)
    return sum(
        2 * (count + 4 * (count // _BLOCK + _TABLE)) if small else 2 * 4 * count
        for count, small in zip(counts, stored, strict=True)
    )
