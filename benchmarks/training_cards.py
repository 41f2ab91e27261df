"""Which GPUs train FLUX and Qwen-Image students: ``python benchmarks/training_cards.py`` prints the table of the docs.

For each machine the first settings that fit, from those nearest to the recipe on: frozen weights in bf16 before fp8,
moments in float32 before 8 bits, whole weights on each GPU before shares, more images at once before fewer. Where none
fits, those that lack least. Blocks run again in the backward. Computed from shapes: no weights, no network, no GPU. A
table in Markdown, then a line of JSON.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from foundation.cli import ArgumentParser, run
from foundation.measuring import as_line, begin

if TYPE_CHECKING:
    from arcflow.needs.iteration import Outline, StepNeeds
    from arcflow.recipe import LoopConfig

MODELS = ("flux", "qwen")
MACHINES = {"1x24": (1, 24), "1x48": (1, 48), "1x80": (1, 80), "8x24": (8, 24), "8x80": (8, 80)}
"""Number of GPUs, and GB (1e9 bytes) of each."""

FROZEN: tuple[Literal["bf16", "fp8"], ...] = ("bf16", "fp8")
OPTIMIZERS: tuple[Literal["adamw", "adamw8bit"], ...] = ("adamw", "adamw8bit")

_PARTS = ("frozen", "trained", "gradients", "moments", "average", "gathered", "activations")
_HEAD = (
    "model, GPUs", "frozen, optimiser", "weights", "images at once", "backbone", *_PARTS[1:], "in all", "fits",
    "TFLOP",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """Settings, what an iteration then takes of each GPU, and bytes left of it: below 0 where it has too few."""

    frozen: str
    optimizer: str
    shard: bool
    images_at_once: int
    needs: StepNeeds
    spare: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the record. Raises ArcFlowError."""
    parser = ArgumentParser(
        prog="python benchmarks/training_cards.py", description="Print which GPUs train which model."
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="this model alone (default: all)")
    parser.add_argument("--machine", action="append", choices=MACHINES, help="this machine alone (default: all)")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {**begin(parser.prog, argv), "rows": []}
    print(_line(_HEAD))
    print(_line(["---"] * 3 + ["---:"] * (len(_HEAD) - 3)))
    for model in arguments.model or MODELS:
        student = Drafts(model)
        for machine in arguments.machine or MACHINES:
            found = student.best(*MACHINES[machine])
            print(_line(_cells(f"{model}, {machine} GB", found)), flush=True)
            record["rows"].append({"model": model, "machine": machine, **asdict(found), "total": found.needs.total})
    print(as_line(record))
    return 0


class Drafts:
    """A recipe's student, laid out once for each kind of frozen weights."""

    def __init__(self, name: str) -> None:
        from arcflow.recipe import load_recipe

        self._recipe = load_recipe(name)
        self._made: dict[str, Outline] = {}

    def best(self, gpus: int, memory: int) -> Choice:
        """The first settings that fit GPUs of so many GB, or those that lack least."""
        tried: list[Choice] = []
        for choice in self._all(gpus, memory * 1e9):
            tried.append(choice)
            if choice.spare >= 0:
                return choice
        return max(tried, key=lambda choice: choice.spare)

    def _all(self, gpus: int, memory: float) -> Iterator[Choice]:
        from arcflow.needs.spread import Spread
        from arcflow.training.loop import share_of

        loop = self._recipe.distill.loop
        most = min(loop.micro_batch or loop.batch, len(share_of(loop.batch, gpus, 0)))
        at_once = [n for n in range(most, 0, -1) if most % n == 0]
        for frozen, optimizer, shard, once in product(FROZEN, OPTIMIZERS, (False, True)[: min(gpus, 2)], at_once):
            wanted: LoopConfig = replace(loop, optimizer=optimizer, micro_batch=once)
            needs = self._outline(frozen).needs(wanted, Spread(gpus, shard))
            yield Choice(frozen, optimizer, shard, once, needs, needs.spare(memory))

    def _outline(self, frozen: Literal["bf16", "fp8"]) -> Outline:
        from arcflow.needs.iteration import Outline
        from arcflow.sources.base import described_base

        if frozen not in self._made:
            recipe = replace(self._recipe, distill=replace(self._recipe.distill, frozen=frozen, checkpointing=True))
            base = described_base(recipe)
            assert base is not None, "the recipe describes its base"
            width, height = max(recipe.distill.pixels, key=math.prod)
            self._made[frozen] = Outline(recipe, base.blank(), base.grid(width, height))
        return self._made[frozen]


def _cells(name: str, found: Choice) -> Sequence[str]:
    needs = found.needs
    fits = f"yes, {_gb(found.spare)} left" if found.spare >= 0 else f"**no**, {_gb(-found.spare)} too few"
    return (
        name, f"{found.frozen}, {found.optimizer}", "shares" if found.shard else "whole", str(found.images_at_once),
        *(_gb(getattr(needs, part)) for part in _PARTS), f"**{_gb(needs.total)}**", fits,
        f"{needs.operations / 1e12:,.0f}",
    )  # fmt: skip


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(run(main))
