"""The teacher inside a student: the same backbone without LoRA and with the teacher's own last layers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.adapter import trained_tensors
from arcflow.architectures import flux
from arcflow.evaluation.metrics import relative_l2
from arcflow.recipe import StudentRecipe
from arcflow.sources.stored import store_linears
from arcflow.students import Student
from arcflow.tiny.teacher_folder import TeacherFolder, open_teacher

X, SIGMA = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(3)), torch.tensor([1.0, 0.4])


@pytest.fixture(scope="module")
def teacher(teacher_path: Path) -> TeacherFolder:
    return open_teacher(teacher_path)


@pytest.fixture
def student(teacher: TeacherFolder) -> Student:
    """In training mode, all that is trained far from its start."""
    torch.manual_seed(1)
    made = Student(deepcopy(teacher.transformer), StudentRecipe(rank=2, modes=3, dropout=0.5))
    with torch.no_grad():
        for tensor in trained_tensors(made).values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return made.train()


def expected(student: Student, teacher: TeacherFolder, condition: Any) -> Tensor:
    with torch.no_grad():
        velocity: Tensor = student.architecture.evaluate(teacher.transformer, X, SIGMA, condition)
    return velocity


def test_it_is_the_teacher_to_the_bit_while_the_student_trains(teacher: TeacherFolder, student: Student) -> None:
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    velocity = student.teacher_velocity(X, SIGMA, condition)
    assert torch.equal(velocity, expected(student, teacher, condition)) and not velocity.requires_grad


def test_stored_in_fp8_it_is_what_is_stored(teacher: TeacherFolder) -> None:
    condition, backbone = teacher.condition(["a dog", "a woman astronaut"], 2.0), deepcopy(teacher.transformer)
    store_linears(backbone)
    with torch.no_grad():
        wanted = flux.evaluate(backbone, X, SIGMA, condition)
    velocity = Student(backbone, StudentRecipe(rank=2, modes=3)).train().teacher_velocity(X, SIGMA, condition)
    assert torch.equal(velocity, wanted)
    assert 0 < float(relative_l2(wanted, flux.evaluate(teacher.transformer, X, SIGMA, condition)).max()) < 0.1


def test_no_dropout_of_the_backbone_reaches_it(teacher: TeacherFolder, student: Student) -> None:
    for module in student.backbone.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.0:
            module.p = 0.5
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    assert torch.equal(student.train().teacher_velocity(X, SIGMA, condition), expected(student, teacher, condition))


def test_the_student_is_the_same_afterwards_also_after_an_error(teacher: TeacherFolder, student: Student) -> None:
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    student.eval()
    with torch.no_grad():
        before = student(X, SIGMA, condition)
        with pytest.raises(ZeroDivisionError), student.as_teacher():
            raise ZeroDivisionError
        student.teacher_velocity(X, SIGMA, condition)
        after = student(X, SIGMA, condition)
    assert torch.equal(before.means, after.means) and torch.equal(before.logweights, after.logweights)
    assert all(p.requires_grad for p in trained_tensors(student).values())


def test_gradients_of_a_graph_that_is_alive_are_not_touched(teacher: TeacherFolder, student: Student) -> None:
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)

    def gradients(ask_teacher: bool) -> list[Tensor]:
        student.zero_grad()
        torch.manual_seed(7)  # of LoRA's dropout
        field = student(X, SIGMA, condition)
        if ask_teacher:
            student.teacher_velocity(X, SIGMA, condition)
        (field.means.square().sum() + field.logweights.square().sum()).backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    plain, asked = gradients(False), gradients(True)
    assert len(plain) == len(trained_tensors(student)) - 2  # The gammas were not asked for.
    assert all(torch.equal(a, b) for a, b in zip(plain, asked, strict=True))


def test_dropout_is_on_in_training_only(teacher: TeacherFolder, student: Student) -> None:
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    with torch.no_grad():
        assert not torch.equal(student(X, SIGMA, condition).means, student(X, SIGMA, condition).means)
        student.eval()
        assert torch.equal(student(X, SIGMA, condition).means, student(X, SIGMA, condition).means)
