"""What a recipe amounts to, counted on torch's meta device: nothing is allocated, whatever the backbone's size."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from arcflow.errors import BackboneError, RecipeError
from arcflow.recipe import Recipe
from arcflow.schedule import sigmas
from arcflow.students import Student, architecture

LIMIT = 0.05
"""The share of the backbone under which the method claims to train."""


@dataclass(frozen=True)
class Inventory:
    """Sizes of a recipe's student, in parameters.

    lora, head, norm_out: what is trained; linears: how many carry LoRA; backbone: all of the teacher's.
    """

    recipe: Recipe
    backbone: int
    lora: int
    head: int
    norm_out: int
    linears: int

    @property
    def trained(self) -> int:
        """Trained parameters."""
        return self.lora + self.head + self.norm_out

    @property
    def share(self) -> float:
        """Trained parameters as a share of the teacher's backbone."""
        return self.trained / self.backbone

    @property
    def largest_rank(self) -> int:
        """The largest rank with which the share stays under LIMIT; 0 where no rank does."""
        room = LIMIT * self.backbone - self.head - self.norm_out
        each = self.lora // self.recipe.student.rank
        rank = max(0, int(room / each))
        return rank if rank * each < room else max(0, rank - 1)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels from 1 down to 0 that the student is distilled for: one evaluation at each but the last."""
        distill = self.recipe.distill
        return sigmas(distill.nfe, self.recipe.shift, distill.final_step_ratio)

    def adapter_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the adapter's tensors saved in ``dtype`` (the file's header comes on top)."""
        return self.trained * dtype.itemsize


def take_inventory(recipe: Recipe, backbone: nn.Module | None = None) -> Inventory:
    """Build a recipe's student without memory and count it. Raises RecipeError, BackboneError.

    backbone: on torch's meta device, another one than the recipe's own; the student takes it over.
    """
    with torch.device("meta"):
        backbone = backbone or meta_backbone(recipe)
        size = _count(backbone)
        student = Student(backbone, recipe.student, recipe.architecture)
    adapted = [name for name, _ in student.lora_layers()]
    head, norm_out = _count(student.backbone.proj_out), _count(student.backbone.norm_out)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return Inventory(recipe, size, trained - head - norm_out, head, norm_out, len(adapted))


def meta_backbone(recipe: Recipe) -> nn.Module:
    """The recipe's backbone on torch's meta device, frozen. Raises RecipeError, BackboneError."""
    with torch.device("meta"):
        if recipe.teacher is not None:
            from arcflow.tiny.teacher import build_transformer

            own = recipe.teacher
            small: nn.Module = build_transformer(own.size, 4 * own.latent_channels)
            return small.requires_grad_(False)
        config = recipe.backbone or {}
        arch = architecture(recipe.architecture)
        known = _parameters(arch.build_backbone)
        unknown = sorted(set(config) - known)
        if unknown:
            raise RecipeError(f"unknown key 'backbone.{unknown[0]}': known are {', '.join(sorted(known))}")
        try:
            backbone: nn.Module = arch.build_backbone(config)
        except BackboneError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
            raise RecipeError(f"[backbone] describes no {recipe.architecture} transformer: {error}") from error
        return backbone.requires_grad_(False)


def _parameters(build: Any) -> set[str]:
    """Keys that the configuration of the class which ``build`` returns may have."""
    import typing

    kind = typing.get_type_hints(build)["return"]
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
