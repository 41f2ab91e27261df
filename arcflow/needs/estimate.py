"""What a training would take, in words: of each GPU, before any is there."""

from __future__ import annotations

import math

from arcflow.needs.iteration import FIXED_ROOM, SHARE_ROOM, Outline, StepNeeds
from arcflow.needs.spread import Spread
from arcflow.recipe import Recipe
from arcflow.sources.base import Base
from arcflow.training.loop import share_of
from foundation.measuring import gigabytes, table

_MOMENTS = {"adamw": "float32", "adamw8bit": "8 bits"}


def estimate_step(recipe: Recipe, base: Base, spread: Spread, memory: float | None = None) -> str:
    """Lines on an iteration: the memory of each GPU at its peak, by part, at the largest size, and its operations.

    memory: GB (1e9 bytes) of a GPU, for a line on whether that is enough. Raises RecipeError, BackboneError.
    """
    settings, loop = recipe.distill, recipe.distill.loop
    images = len(share_of(loop.batch, spread.gpus, 0))
    width, height = max(settings.pixels, key=math.prod)
    needs = Outline(recipe, base.blank(), base.grid(width, height)).needs(loop, spread)
    gpus = "one GPU" if spread.gpus == 1 else f"each of {spread.gpus} GPUs"
    once = min(loop.micro_batch or images, images)
    lines = [
        f"an iteration on {gpus}: {images} images of {width}x{height}, {once} at once, "
        f"{needs.operations / 1e12:,.0f} TFLOP, about {gigabytes(needs.total)} of memory:",
        table(((f"  {name}", gigabytes(size)) for name, size in parts(recipe, needs).items()), right={1}),
    ]
    if memory is not None:
        spare = needs.spare(memory * 1e9)
        room = f"with {gigabytes(FIXED_ROOM)} and {SHARE_ROOM:.0%} kept free"
        if spare >= 0:
            lines.append(f"fits a GPU of {memory:g} GB, {room}: {gigabytes(int(spare))} are left")
        else:
            lines.append(f"does not fit a GPU of {memory:g} GB, {room}: {gigabytes(int(-spare))} are missing")
    lines.append("computed from shapes, not measured on a GPU; text encoders come on top, unless encodings are cached")
    return "\n".join(lines)


def parts(recipe: Recipe, needs: StepNeeds) -> dict[str, int]:
    """Bytes of each part by a name for people, those left out that are not there."""
    settings = recipe.distill
    kept = "blocks run again in the backward" if settings.checkpointing else "all kept for the backward"
    found = {
        f"backbone ({settings.frozen})": needs.frozen,
        "trained weights": needs.trained,
        "gradients": needs.gradients,
        f"AdamW's moments ({_MOMENTS[settings.loop.optimizer]})": needs.moments,
        "average": needs.average,
        "gathered from the other GPUs": needs.gathered,
        f"activations ({kept})": needs.activations,
    }
    return {name: size for name, size in found.items() if size}
