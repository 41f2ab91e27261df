"""Full fine-tuning: every weight learns, and the teacher stays what it was."""

from __future__ import annotations

from copy import deepcopy

import torch

from arcflow.recipe import Recipe, TransformerSize
from arcflow.rivals.full import FullStudent
from arcflow.tiny.teacher import build_transformer

SIZE = TransformerSize(heads=1, head_dim=32, double_blocks=1, single_blocks=1, rope=(8, 12, 12))


def test_all_weights_learn_and_the_teacher_does_not(recipe: Recipe) -> None:
    torch.manual_seed(0)
    backbone = build_transformer(SIZE, 16)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    before = deepcopy(backbone)
    student = FullStudent(backbone, recipe.student)
    student.filled()
    student.train()
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {f"backbone.{name}" for name, _ in student.backbone.named_parameters()}
    with student.as_teacher() as teacher:
        assert student.teaching
        for (name, own), old in zip(teacher.named_parameters(), before.parameters(), strict=True):
            assert torch.equal(own, old) and not own.requires_grad, name
    assert not student.teaching and not teacher.training and student.gamma_parameters()
    with torch.no_grad():
        for parameter in student.backbone.parameters():
            parameter.add_(1.0)
    with student.as_teacher() as teacher:
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before.parameters(), strict=True))
