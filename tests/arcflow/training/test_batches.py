"""What an iteration draws depends on its place alone: not on the number of processes, nor on what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from arcflow.architectures import flux, qwen
from arcflow.errors import RecipeError
from arcflow.prompts.encodings import Encodings
from arcflow.recipe import DistillRecipe, LoopConfig
from arcflow.sources.text import Encoding
from arcflow.training.batches import Batch, normal, prompted
from arcflow.training.loop import Iteration, share_of

GRIDS = [(2, 2), (2, 3), (4, 1)]


class Numbered:
    """Encodings that tell their prompt's number, and what was asked for."""

    def __init__(self) -> None:
        self.coming: list[int] = []

    def __len__(self) -> int:
        return 1000

    def get(self, numbers: Sequence[int], coming: Callable[[], Iterable[int]]) -> list[Encoding]:
        self.coming = list(coming())
        return [{"sequence": torch.full((3, 2), float(n)), "pooled": torch.full((2,), float(n))} for n in numbers]

    def empty(self) -> Encoding:
        return {"sequence": torch.full((1, 2), -1.0)}


def iteration(index: int, places: range, seed: int = 0) -> Iteration:
    return Iteration(index, torch.Generator(), lambda last: nullcontext(), seed, places)


def draw(it: Iteration, encodings: Encodings | None = None) -> tuple[Batch, torch.Tensor]:
    generators = it.rows()
    batch = prompted(flux, encodings or Numbered(), ("embedded", 3.5), GRIDS)(it, generators)
    return batch, normal(generators, 2, 4)


def test_a_batch_is_the_same_on_one_process_and_on_two() -> None:
    for index in (0, 7):
        whole, noise = draw(iteration(index, range(4)))
        halves = [draw(iteration(index, share_of(4, 2, process))) for process in range(2)]
        assert torch.equal(torch.cat([b.condition.pooled for b, _ in halves]), whole.condition.pooled)
        assert torch.equal(torch.cat([n for _, n in halves]), noise)
        assert {b.condition.image_tokens for b, _ in halves} == {whole.condition.image_tokens}


def test_images_iterations_and_seeds_differ() -> None:
    noises = [draw(iteration(index, range(3), seed))[1] for index, seed in ((0, 0), (1, 0), (0, 1))]
    rows = torch.cat(noises)
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 9


def test_every_size_comes_up_and_prompts_are_spread() -> None:
    batches = [draw(iteration(index, range(4)))[0] for index in range(60)]
    assert {b.condition.image_tokens for b in batches} == {4, 6}
    assert len({len(torch.unique(b.condition.img_ids[:, 1])) for b in batches}) == 2
    numbers = {int(n) for b in batches for n in b.condition.pooled[:, 0]}
    assert len(numbers) > 180


def test_what_comes_next_is_known_beforehand() -> None:
    encodings = Numbered()
    draw(iteration(3, range(2)), encodings)
    wanted = [int(n) for n in draw(iteration(4, range(2)))[0].condition.pooled[:, 0]]
    assert encodings.coming[2:4] == wanted


def test_classifier_free_guidance_comes_with_the_empty_prompt_of_the_same_size() -> None:
    it = iteration(0, range(2))
    batch = prompted(qwen, Numbered(), ("cfg", 4.0), [(2, 3)])(it, it.rows())
    assert batch.guidance is not None and batch.guidance.scale == 4.0
    assert (batch.guidance.empty.rows, batch.guidance.empty.columns) == (2, 3)
    assert batch.guidance.empty.sequence.unique().tolist() == [-1.0] and batch.condition.mask.all()


@pytest.mark.parametrize("wrong", ["1024", "0x16", "1024X1024", "12x", "\u0661x16"])
def test_a_size_that_is_none_is_refused(wrong: str) -> None:
    recipe = DistillRecipe(LoopConfig(iterations=1, batch=1, lr=0.1), sizes=("1024x768",))
    assert recipe.pixels == ((1024, 768),)
    with pytest.raises(RecipeError, match="is not understood: write WIDTHxHEIGHT"):
        replace(recipe, sizes=("1024x768", wrong))


def test_bf16_weights_need_bf16_arithmetic() -> None:
    with pytest.raises(RecipeError, match="precision"):
        DistillRecipe(LoopConfig(iterations=1, batch=1, lr=0.1), frozen="bf16")
