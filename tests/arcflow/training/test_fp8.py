"""Training in FP8: the very numbers of the exporter's simulation, straight-through gradients, when it is on and off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.architectures import flux
from arcflow.recipe import Recipe, TransformerSize
from arcflow.sources.fp8 import fake_quantise_rows
from arcflow.sources.stored import as_frozen
from arcflow.students import Student
from arcflow.tiny.teacher import build_transformer, condition_of
from arcflow.training.batches import Batch
from arcflow.training.distillation import distill_step, drawn_nfe, fp8_begins
from arcflow.training.fp8 import Fp8Linears, merged, straight_through
from arcflow.training.loop import Iteration
from arcflow.training.run import _identity
from arcflow.training.sharding import piece
from export.fp8.simulation import fake_quantised

SIZE = TransformerSize(heads=1, head_dim=32, double_blocks=1, single_blocks=1, rope=(8, 12, 12))


@pytest.fixture
def student(recipe: Recipe) -> Iterator[Student]:
    torch.manual_seed(0)
    backbone = build_transformer(SIZE, 16)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    made = Student(backbone, recipe.student).eval()
    with torch.no_grad():
        for _, layer in made.lora_layers():
            layer.lora_B["default"].weight.normal_(std=0.1)  # type: ignore[index,union-attr]
    yield made


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Any]:
    g = torch.Generator().manual_seed(1)
    condition = condition_of(
        torch.randn(batch, 64, generator=g), torch.randn(batch, 5, 64, generator=g), torch.full((batch,), 2.0)
    )
    return torch.randn(batch, 16, 16, generator=g), torch.tensor([0.7, 0.4])[:batch], condition


def means(student: Any, *arguments: Any) -> Tensor:
    found: Tensor = flux.evaluate(getattr(student, "backbone", student), *arguments).means
    return found


def merged_backbone(student: Student) -> nn.Module:
    """The student's backbone with plain linears of the merged weights."""
    backbone = student.backbone
    for name, layer in list(student.lora_layers()):
        plain = nn.Linear(layer.in_features, layer.out_features)  # type: ignore[arg-type]
        plain.weight.data, plain.bias.data = merged(layer).detach(), layer.base_layer.bias.detach()  # type: ignore[union-attr]
        backbone.set_submodule(name, plain)
    return backbone  # type: ignore[no-any-return]


def test_it_computes_what_the_exporter_s_simulation_does(student: Student) -> None:
    linears, arguments = Fp8Linears(student), inputs()
    plain = means(student, *arguments)
    with linears.observed() as bounds:
        assert torch.equal(means(student, *arguments), plain)
        bounds = dict(bounds)
    with linears.computing(bounds):
        ours = means(student, *arguments)
    assert torch.equal(means(student, *arguments), plain)
    backbone = merged_backbone(student)
    wanted = [name for name, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    wanted = [name for name in wanted if any(fnmatchcase(f"{name}.weight", p) for p in flux.FP8_LAYERS)]
    assert set(linears.layers) == set(wanted) and min(bounds.values()) > 0
    with fake_quantised(backbone, bounds):
        theirs = means(backbone, *arguments)
    error = float((plain - theirs).detach().norm())
    assert error > 0 and float((ours - theirs).detach().norm()) < 0.05 * error


def test_an_image_s_result_does_not_depend_on_its_company(student: Student) -> None:
    linears, (x, sigma, condition) = Fp8Linears(student), inputs()
    with linears.computing():
        together = means(student, x, sigma, condition)
        alone = means(student, x[1:], sigma[1:], condition[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


def test_gradients_pass_the_rounding() -> None:
    values = torch.tensor([0.1, -0.7, 3.3], requires_grad=True)
    rounded = values.detach().round()
    result = straight_through(values, rounded)
    assert torch.equal(result, rounded)
    (result * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [2.0, 3.0, 4.0]


def test_lora_learns_through_the_merged_weight(student: Student) -> None:
    name, layer = next((n, m) for n, m in student.lora_layers() if n in Fp8Linears(student).layers)
    linears = Fp8Linears(student)
    module: Any = layer
    x, target = torch.randn(2, 3, module.in_features), torch.randn(2, 3, module.out_features)
    with linears.computing():
        module(x).sub(target).square().sum().backward()
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    with torch.no_grad(), linears.computing():
        slope = 2 * (module(x) - target).flatten(0, 1).T
    weight = fake_quantise_rows(merged(module).detach())
    assert not torch.equal(weight, merged(module).detach())
    bound = x.abs().flatten(1).amax(1)[:, None, None] / 448
    seen = ((x / bound).to(torch.float8_e4m3fn).float() * bound).flatten(0, 1)
    torch.testing.assert_close(b.grad, slope @ seen @ a.detach().T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.grad, b.detach().T @ slope @ seen, rtol=1e-4, atol=1e-4)
    assert name


def test_the_teacher_never_computes_in_fp8(student: Student) -> None:
    linears, arguments = Fp8Linears(student), inputs()
    plain = student.teacher_velocity(*arguments)
    with linears.computing():
        assert torch.equal(student.teacher_velocity(*arguments), plain)


def test_frozen_weights_that_are_stored_in_fp8_are_merged_as_they_are(recipe: Recipe) -> None:
    torch.manual_seed(0)
    backbone = build_transformer(SIZE, 16)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    stored = Student(as_frozen(backbone, "fp8"), recipe.student).eval()
    linears = Fp8Linears(stored)
    name = linears.layers[0]
    layer = stored.backbone.get_submodule(name)
    x = torch.randn(1, 3, layer.in_features).bfloat16()
    with linears.computing():
        assert layer(x).dtype == torch.bfloat16
    assert merged(layer).dtype == torch.float32 and merged(layer).shape == (layer.out_features, layer.in_features)


def iteration(index: int, module: nn.Module) -> Iteration:
    return Iteration(index, torch.Generator(), lambda last: piece(module, last), 0, range(2))


def test_a_step_turns_to_fp8_where_the_recipe_says(student: Student, recipe: Recipe) -> None:
    loop = replace(recipe.distill.loop, iterations=10, precision="fp32")
    settings = replace(recipe.distill, loop=loop, fp8_from=0.65)
    assert fp8_begins(settings) == 7.0
    _, _, condition = inputs()
    step = distill_step(student.train(), lambda *_: Batch(condition), 1.7, settings)
    plain = distill_step(student, lambda *_: Batch(condition), 1.7, replace(settings, fp8_from=None))
    for index, on in ((6, 0.0), (7, 1.0)):
        figures = step(student, iteration(index, student))
        student.zero_grad()
        assert figures["fp8"] == on
        same = plain(student, iteration(index, student))["loss"] == figures["loss"]
        student.zero_grad()
        assert same == (on == 0.0)


def test_the_number_of_evaluations_is_drawn_for_each_batch(recipe: Recipe, student: Student) -> None:
    settings = replace(recipe.distill, several_nfe=(1, 2, 4))
    drawn = [drawn_nfe(iteration(index, student), settings) for index in range(300)]
    assert set(drawn) == {1, 2, 4}
    assert all(70 < drawn.count(count) < 130 for count in (1, 2, 4))
    assert drawn == [drawn_nfe(iteration(index, student), settings) for index in range(300)]
    assert {drawn_nfe(iteration(index, student), recipe.distill) for index in range(9)} == {recipe.distill.nfe}


def test_a_run_without_the_options_is_that_of_before_they_were_there(recipe: Recipe) -> None:
    def identity(**changed: Any) -> str:
        distill = replace(recipe.distill, **changed)
        return _identity(replace(recipe, distill=distill), recipe.student, ["a dog"], "teacher", None)

    def longer(**changed: Any) -> str:
        return identity(loop=replace(recipe.distill.loop, iterations=99), **changed)

    assert len({identity(), identity(several_nfe=(1, 2)), identity(fp8_from=0.0), identity(fp8_from=0.5)}) == 4
    assert longer() == identity(), "a run at a constant rate may be extended"
    assert longer(fp8_from=0.5) != identity(fp8_from=0.5), "FP8 would begin elsewhere"
