"""Qwen-Image students: conditions, positions, what is adapted, guidance, distillation and the adapter's way back."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from arcflow.adapter import Policy, merge_into, read_adapter, save_adapter, trained_tensors
from arcflow.architectures import qwen
from arcflow.errors import BackboneError
from arcflow.field import velocity
from arcflow.recipe import Recipe, StudentRecipe
from arcflow.sampling import ClassifierFree, sample_student, sample_teacher, teacher_velocity
from arcflow.students import Student, build_student, lora_module_names
from arcflow.training.batches import Batch, Generators, uniform
from arcflow.training.distillation import distill_step
from arcflow.training.loop import Iteration, fit

CONFIG: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "guidance_embeds": False, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
ROWS, COLUMNS, TEXT = 4, 3, 7


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = qwen.build_backbone(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return]


def condition(batch: int, seed: int = 0, tokens: int = TEXT) -> qwen.Condition:
    """Random prompts of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
    mask = torch.arange(tokens)[None] < lengths
    return qwen.Condition(torch.randn(batch, tokens, 24, generator=generator), mask, ROWS, COLUMNS)


def latents(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, ROWS * COLUMNS, 16, generator=torch.Generator().manual_seed(seed))


def test_an_untrained_linear_student_is_the_teacher(teacher: nn.Module) -> None:
    student = Student(copy.deepcopy(teacher), StudentRecipe(rank=2, modes=1), "qwen").eval()
    x, sigma, c = latents(2), torch.tensor([1.0, 0.4]), condition(2)
    field = student(x, sigma, c)
    torch.testing.assert_close(velocity(field, sigma, sigma), qwen.evaluate(teacher, x, sigma, c), rtol=1e-5, atol=1e-5)


def test_padding_is_not_attended_to_and_positions_do_not_depend_on_it(teacher: nn.Module) -> None:
    x, sigma, c = latents(2), torch.tensor([1.0, 0.4]), condition(2)
    noisy = c.sequence + 100.0 * torch.randn_like(c.sequence) * ~c.mask[..., None]
    out = qwen.evaluate(teacher, x, sigma, c)
    torch.testing.assert_close(out, qwen.evaluate(teacher, x, sigma, replace(c, sequence=noisy)))
    length = int(c.mask[1].sum())
    alone = qwen.Condition(c.sequence[1:, :length], c.mask[1:, :length], ROWS, COLUMNS)
    torch.testing.assert_close(out[1:], qwen.evaluate(teacher, x[1:], sigma[1:], alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[1:], qwen.evaluate(teacher, x[1:], sigma[1:], c[1:]), rtol=1e-4, atol=1e-5)
    integers = replace(c, mask=c.mask.long())
    assert torch.equal(out, qwen.evaluate(teacher, x, sigma, integers))


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (1, 6), (5, 5)])
def test_positions_are_those_of_the_rotary_tables(teacher: Any, size: tuple[int, int]) -> None:
    rows, columns = size
    image, text = teacher.pos_embed([[(1, rows, columns)]], max_txt_seq_len=TEXT, device=torch.device("cpu"))
    frequencies = [10000.0 ** (-torch.arange(0, d, 2) / d) for d in CONFIG["axes_dims_rope"]]

    def table(positions: Tensor) -> Tensor:
        angles = torch.cat([torch.outer(positions[:, a], f) for a, f in enumerate(frequencies)], dim=1)
        return torch.polar(torch.ones_like(angles), angles)

    torch.testing.assert_close(table(qwen.image_positions(rows, columns)), image)
    torch.testing.assert_close(table(qwen.text_positions(rows, columns, TEXT)[:, None].expand(-1, 3)), text)


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_the_last_text_mlp_carries_no_lora(layers: int) -> None:
    with torch.device("meta"):
        backbone = qwen.build_backbone({**CONFIG, "num_layers": layers})
    names = lora_module_names(backbone, qwen)
    assert len(names) == len(set(names)) == 2 + 2 * layers + 2 * (layers - 1)
    text = {n for n in names if ".txt_mlp." in n}
    ends = ("0.proj", "2")
    assert text == {f"transformer_blocks.{i}.txt_mlp.net.{e}" for i in range(layers - 1) for e in ends}
    assert f"transformer_blocks.{layers - 1}.img_mlp.net.2" in names


def test_every_adapted_linear_feeds_the_field(teacher: nn.Module) -> None:
    """Nothing that is trained may be dead, and what is left out is dead indeed."""
    student = Student(copy.deepcopy(teacher), StudentRecipe(rank=2, modes=3, dropout=0.0), "qwen")
    with torch.no_grad():
        for tensor in trained_tensors(student).values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    field = student(latents(1), torch.tensor([0.7]), condition(1))
    (field.means.square().sum() + field.logweights.square().sum() + field.loggammas.square().sum()).backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    changed = copy.deepcopy(teacher)
    for linear in qwen.unused_linears(changed):
        changed.get_submodule(linear).weight.fill_(3.0)  # type: ignore[operator,union-attr]
    x, sigma, c = latents(1), torch.tensor([0.7]), condition(1)
    assert torch.equal(qwen.evaluate(changed, x, sigma, c), qwen.evaluate(teacher, x, sigma, c))


def test_student_and_teacher_are_one_copy_of_the_frozen_weights(teacher: Any) -> None:
    given = copy.deepcopy(teacher).requires_grad_(True)
    before = dict(given.named_parameters())
    student = Student(given, StudentRecipe(rank=2, modes=2), "qwen")
    trained = {id(tensor) for tensor in trained_tensors(student).values()}
    kept = [p for p in student.parameters() if id(p) not in trained]
    assert {id(p) for p in kept} == {id(p) for p in before.values()} and not any(p.requires_grad for p in kept)
    with torch.no_grad():
        for tensor in trained_tensors(student).values():
            tensor.fill_(7.0)
    x, sigma, c = latents(2), torch.tensor([1.0, 0.4]), condition(2)
    assert torch.equal(student.teacher_velocity(x, sigma, c), qwen.evaluate(teacher, x, sigma, c))


@torch.no_grad()
@pytest.mark.parametrize("modes", [1, 3])
def test_saved_read_and_merged_it_is_the_same_student(teacher: nn.Module, tmp_path: Path, modes: int) -> None:
    torch.manual_seed(1)
    live = Student(copy.deepcopy(teacher), StudentRecipe(rank=2, modes=modes), "qwen").eval()
    for tensor in trained_tensors(live).values():
        tensor.add_(0.05 * torch.randn_like(tensor))
    save_adapter(live, CONFIG, Policy(3.2, 4.0), tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.config.class_name == "ArcQwenImageTransformer2DModel" and adapter.config.modes == modes
    assert adapter.whole["proj_out_loggamma.weight"].shape == ((modes - 1) * 4, 32)
    merged = merge_into(build_student(CONFIG, modes, "qwen"), teacher.state_dict(), adapter).eval()
    x, sigma, c = latents(2), torch.tensor([1.0, 0.4]), condition(2)
    ours, theirs = live(x, sigma, c), qwen.evaluate(merged, x, sigma, c)
    for part in ("means", "logweights", "loggammas"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=2e-5, atol=2e-5)


def test_guidance_is_two_evaluations_of_the_teacher(teacher: nn.Module) -> None:
    x, sigma, c = latents(3), torch.tensor([1.0, 0.6, 0.2]), condition(3)
    empty = condition(1, seed=9, tokens=2)
    u = qwen.evaluate(teacher, x, sigma, c)
    u_empty = qwen.evaluate(teacher, x, sigma, empty[[0, 0, 0]])
    assert float((u - u_empty).abs().max()) > 1e-3
    guided = teacher_velocity(qwen, teacher, x, sigma, c, ClassifierFree(4.0, empty))
    torch.testing.assert_close(guided, u + 3.0 * (u - u_empty))
    torch.testing.assert_close(teacher_velocity(qwen, teacher, x, sigma, c, ClassifierFree(1.0, empty)), u)
    assert torch.equal(teacher_velocity(qwen, teacher, x, sigma, c), u)


def test_distillation_brings_the_student_to_the_guided_teacher(
    teacher: nn.Module, recipe: Recipe, tmp_path: Path
) -> None:
    """The same loop as FLUX's, with classifier-free guidance; measured on noise that was never trained on."""
    loop = replace(recipe.distill.loop, iterations=25, batch=4, warmup=2, lr=1e-2, save_every=1000, precision="fp32")
    settings = replace(recipe.distill, loop=loop, teacher_share_iterations=12, intermediate_states=2)
    guidance = ClassifierFree(4.0, condition(1, seed=9, tokens=2))
    pool = condition(16, seed=3)

    def draw(_: Iteration, generators: Generators) -> Batch:
        return Batch(pool[(16 * uniform(generators)).long()], guidance)

    torch.manual_seed(0)
    student = Student(copy.deepcopy(teacher), StudentRecipe(rank=4, modes=4), "qwen")
    noise, c = latents(4, seed=5), pool[:4]
    truth, _ = sample_teacher(qwen, teacher, noise, c, 20, 3.2, guidance)

    def error() -> float:
        x, _ = sample_student(qwen, student.eval().backbone, noise, c, 2, 3.2)
        return float((x - truth).norm() / truth.norm())

    before = error()
    losses: list[float] = []
    step = distill_step(student, draw, 3.2, settings)
    fit(student, step, loop, tmp_path, report=lambda _, figures: losses.append(figures["loss"]))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert error() < 0.8 * before


VARIANTS = {
    "guidance": ({"guidance_embeds": True}, "guidance_embeds"),
    "editing": ({"zero_cond_t": True}, "zero_cond_t"),
    "layered": ({"use_layer3d_rope": True}, "use_layer3d_rope"),
    "channels": ({"patch_size": 1}, "takes tokens of 16 channels and returns 4"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_models_of_the_family_are_refused(variant: str) -> None:
    change, words = VARIANTS[variant]
    with pytest.raises(BackboneError, match=words), torch.device("meta"):
        build_student({**CONFIG, **change}, 2, "qwen")


def test_built_without_memory_it_can_be_filled_and_run(teacher: nn.Module, tmp_path: Path) -> None:
    with torch.device("meta"):
        blank = qwen.build_backbone({**CONFIG, "pooled_projection_dim": 768})  # as Qwen-Image's own configuration
    blank.load_state_dict(teacher.state_dict(), assign=True)
    x, sigma, c = latents(1), torch.tensor([0.5]), condition(1)
    assert torch.equal(qwen.evaluate(blank.eval(), x, sigma, c), qwen.evaluate(teacher, x, sigma, c))


def test_what_is_trained_is_float32_whatever_the_teacher_is(teacher: nn.Module) -> None:
    half = copy.deepcopy(teacher).bfloat16()
    student = Student(half, StudentRecipe(rank=2, modes=2), "qwen")
    assert {t.dtype for t in trained_tensors(student).values()} == {torch.float32}
    assert student.backbone.img_in.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = student(latents(1), torch.tensor([0.5]), condition(1))
    assert field.means.dtype == torch.float32 and bool(torch.isfinite(field.means).all())
