"""Full fine-tuning: every weight of the backbone is trained, and a second copy of it is the teacher."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn

from arcflow.architectures import flux
from arcflow.recipe import StudentRecipe
from arcflow.students import LAST, MakeHead, Student, architecture, momentum_head


class FullStudent(Student):
    """A student without LoRA, all of whose weights learn. For small backbones: its teacher is a copy of them."""

    def __init__(
        self, teacher: nn.Module, recipe: StudentRecipe, name: str = flux.NAME, make_head: MakeHead | None = None
    ) -> None:
        """As of :class:`Student`; the recipe's rank and dropout are not used."""
        nn.Module.__init__(self)
        self.recipe, self.architecture, self.teaching = recipe, architecture(name), False
        self.backbone = teacher.requires_grad_(False)
        self.teacher_layers = nn.ModuleDict({layer: getattr(self.backbone, layer) for layer in LAST}).eval()
        head = (make_head or partial(momentum_head, recipe))(self.backbone.proj_out)
        self.backbone.norm_out = copy.deepcopy(self.backbone.norm_out)
        self.backbone.proj_out = head

    def filled(self) -> None:
        """Keep a frozen copy as the teacher; all else is trained from here on, in float32."""
        self.frozen = copy.deepcopy(self.backbone).requires_grad_(False).eval()
        for name, layer in self.teacher_layers.items():
            setattr(self.frozen, name, layer)
        for parameter in self.backbone.requires_grad_(True).parameters():
            parameter.data = parameter.data.float()

    def train(self, mode: bool = True) -> FullStudent:
        """Training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    @contextmanager
    def as_teacher(self) -> Iterator[nn.Module]:
        """The frozen copy."""
        self.teaching = True
        try:
            yield self.frozen
        finally:
            self.teaching = False
