"""Students and adapters on a real, small FLUX: head, LoRA, file format, strictness, merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcflow.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Policy,
    merge_into,
    read_adapter,
    read_config,
    save_adapter,
    trained_tensors,
)
from arcflow.architectures.flux import pack, unpack
from arcflow.errors import AdapterError, RecipeError
from arcflow.field import velocity
from arcflow.recipe import Recipe, StudentRecipe
from arcflow.students import Student, architecture, build_student
from arcflow.tiny.teacher_folder import TeacherFolder, open_teacher


@pytest.fixture(scope="module")
def teacher(teacher_path: Path) -> TeacherFolder:
    return open_teacher(teacher_path)


def shaken(teacher: TeacherFolder, recipe: Recipe) -> Student:
    """A student whose trained tensors are all far from their start."""
    torch.manual_seed(1)
    student = Student(deepcopy(teacher.transformer), recipe.student)
    with torch.no_grad():
        for tensor in trained_tensors(student).values():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return student.eval()


def saved(teacher: TeacherFolder, recipe: Recipe, folder: Path) -> Student:
    student = shaken(teacher, recipe)
    save_adapter(student, teacher.transformer.config, Policy(1.7, 2.0), folder)
    return student


@torch.no_grad()
def test_an_untrained_linear_student_is_the_teacher(teacher: TeacherFolder) -> None:
    student = Student(deepcopy(teacher.transformer), StudentRecipe(rank=2, modes=1)).eval()
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    x, sigma = torch.randn(2, 16, 64), torch.tensor([1.0, 0.4])
    field = student(x, sigma, condition)
    expected = student.architecture.evaluate(teacher.transformer, x, sigma, condition)
    torch.testing.assert_close(velocity(field, sigma, sigma), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_untrained_student_is_near_the_teacher_and_has_its_shapes(teacher: TeacherFolder) -> None:
    torch.manual_seed(0)
    student = Student(deepcopy(teacher.transformer), StudentRecipe(rank=2, modes=5)).eval()
    condition = teacher.condition(["a dog"], 2.0)
    x, sigma = torch.randn(1, 16, 64), torch.tensor([1.0])
    field = student(x, sigma, condition)
    assert field.means.shape == (1, 16, 5, 64)
    assert field.logweights.shape == (1, 16, 5, 4) and field.loggammas.shape == (1, 16, 4, 4)
    torch.testing.assert_close(field.logweights.exp(), torch.full((1, 16, 5, 4), 0.2))
    gammas = field.loggammas[0, 0, :, 0].exp()
    assert gammas[0] == pytest.approx(0.2) and gammas[-1] == pytest.approx(4.0)
    expected = student.architecture.evaluate(teacher.transformer, x, sigma, condition)
    assert float((velocity(field, sigma, sigma) - expected).abs().max()) < 0.2
    bias = student.backbone.proj_out.means.bias.view(5, 16, 4)
    assert bool((bias - teacher.transformer.proj_out.bias.view(16, 4)).std(dim=-1).max() < 1e-6)


@torch.no_grad()
def test_gates_begin_so_that_no_mode_outgrows_the_others(teacher: TeacherFolder) -> None:
    recipe = StudentRecipe(rank=2, modes=4, head_bias_std=0.0, gamma_range=(1e-3, 1e3), gate_span=0.5)
    student = Student(deepcopy(teacher.transformer), recipe).eval()
    condition = teacher.condition(["a dog"], 2.0)
    x, sigma = torch.randn(1, 16, 64), torch.tensor([1.0])
    field = student(x, sigma, condition)
    logs = torch.nn.functional.pad(field.loggammas, (0, 0, 1, 0))[0, 0, :, 0]
    torch.testing.assert_close(logs.exp(), torch.tensor([1.0, 1e-3, 1.0, 1e3]), rtol=1e-4, atol=0.0)
    ends = (field.logweights[0, 0, :, 0] + 0.5 * logs).exp()
    assert float(ends.max()) == pytest.approx(float(ends[0]), rel=1e-4), "at the span's end none is above the line"
    expected = student.architecture.evaluate(teacher.transformer, x, sigma, condition)
    torch.testing.assert_close(velocity(field, sigma, sigma), expected, rtol=1e-4, atol=1e-4)


def test_only_lora_head_and_norm_out_are_trained(teacher: TeacherFolder, recipe: Recipe) -> None:
    student = Student(deepcopy(teacher.transformer), recipe.student)
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "norm_out" in n or ".proj_out.means" in n or ".proj_out.log" in n for n in trained)
    assert not any(p.requires_grad for p in teacher.transformer.parameters())


def test_the_file_has_the_released_names(teacher: TeacherFolder, recipe: Recipe, tmp_path: Path) -> None:
    saved(teacher, recipe, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    assert tensors["single_transformer_blocks.0.proj_mlp.lora_A.weight"].shape == (2, 64)
    assert tensors["single_transformer_blocks.1.proj_out.lora_B.weight"].shape == (64, 2)
    assert "transformer_blocks.0.ff_context.net.0.proj.lora_A.weight" in tensors
    assert "time_text_embed.timestep_embedder.linear_1.lora_A.weight" in tensors
    assert tensors["proj_out_means.weight"].shape == (3 * 64, 64)
    assert tensors["proj_out_loggamma.bias"].shape == (2 * 4,)
    config = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    assert config["_class_name"] == "ArcFluxTransformer2DModel" and config["num_gaussians"] == 3
    assert config["in_channels"] == 64 and config["num_single_layers"] == 2


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_merged_student_equals_the_live_one(
    teacher: TeacherFolder, recipe: Recipe, tmp_path: Path, prefix: str
) -> None:
    live = saved(teacher, recipe, tmp_path / "adapter")
    if prefix:
        weights = tmp_path / "adapter" / WEIGHTS_FILE
        save_file({prefix + k: v for k, v in load_file(weights).items()}, weights)
    adapter = read_adapter(tmp_path / "adapter")
    merged = build_student(teacher.transformer.config, adapter.config.modes)
    merge_into(merged, teacher.transformer.state_dict(), adapter).eval()
    condition = teacher.condition(["a dog", "a woman astronaut"], 2.0)
    x, sigma = torch.randn(2, 16, 64), torch.tensor([1.0, 0.4])
    ours, theirs = live(x, sigma, condition), live.architecture.evaluate(merged, x, sigma, condition)
    for part in ("means", "logweights", "loggammas"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_a_linear_student_comes_back_from_its_adapter(teacher: TeacherFolder, recipe: Recipe, tmp_path: Path) -> None:
    linear = replace(recipe, student=replace(recipe.student, modes=1))
    live = saved(teacher, linear, tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.config.modes == 1 and adapter.whole["proj_out_loggamma.weight"].shape == (0, 64)
    merged = merge_into(build_student(teacher.transformer.config, 1), teacher.transformer.state_dict(), adapter)  # type: ignore[arg-type]
    condition = teacher.condition(["a dog"], 2.0)
    x, sigma = torch.randn(1, 16, 64), torch.tensor([0.7])
    ours, theirs = live(x, sigma, condition), live.architecture.evaluate(merged.eval(), x, sigma, condition)
    torch.testing.assert_close(ours.means, theirs.means, rtol=2e-5, atol=2e-5)
    assert theirs.loggammas.shape == (1, 16, 0, 4)


def _rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS_FILE)

    return apply


def _config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = json.loads((folder / CONFIG_FILE).read_text())
        data.update(changes)
        (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))

    return apply


A = "single_transformer_blocks.0.proj_mlp.lora_A.weight"
B = "single_transformer_blocks.0.proj_mlp.lora_B.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-100]), "truncated"),
    "empty": (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), "damaged or truncated"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "is missing"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "is missing"),
    "config no json": (lambda f: (f / CONFIG_FILE).write_text("{") and None, "cannot read"),
    "not a number": (_rewrite(lambda t: t[A][0].fill_(float("nan"))), "not finite"),
    "infinite": (_rewrite(lambda t: t["norm_out.linear.bias"][0].fill_(float("inf"))), "not finite"),
    "half a pair": (_rewrite(lambda t: t.pop(B)), "no matching"),
    "other half": (_rewrite(lambda t: t.pop(A)), "no matching"),
    "no head": (_rewrite(lambda t: t.pop("proj_out_means.bias")), "lacks proj_out_means.bias"),
    "unknown key": (_rewrite(lambda t: t.update(extra=torch.zeros(1))), "unknown key 'extra'"),
    "wrong modes": (_config(num_gaussians=0), "num_gaussians"),
    "no modes": (_config(num_gaussians=None), "lacks 'num_gaussians'"),
    "wrong patch": (_config(logweights_channels=1), "logweights_channels"),
    "policy of a wrong type": (_config(arcflow_policy={"shift": "much", "guidance": 2.0}), "arcflow_policy"),
    "policy": (_config(arcflow_policy={"speed": 1}), "arcflow_policy"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused(teacher: TeacherFolder, recipe: Recipe, tmp_path: Path, damage: str) -> None:
    saved(teacher, recipe, tmp_path / "adapter")
    change, words = DAMAGE[damage]
    change(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=words):
        read_adapter(tmp_path / "adapter")


MISFIT: dict[str, tuple[Callable[[Path], None], str]] = {
    "another module": (
        _rewrite(lambda t: t.update({k.replace("blocks.0", "blocks.9"): t.pop(k) for k in (A, B)})),
        "no linear of this backbone",
    ),
    "another width": (_rewrite(lambda t: t.update({A: torch.zeros(2, 65)})), "has shape"),
    "ranks differ": (_rewrite(lambda t: t.update({B: torch.zeros(256, 3)})), "differ in rank"),
    "another head": (_rewrite(lambda t: t.update({"proj_out_means.weight": torch.zeros(32, 64)})), "has shape"),
    "overflow": (_rewrite(lambda t: (t[A].fill_(3e38), t[B].fill_(3e38))), "not finite"),
}


@pytest.mark.parametrize("misfit", MISFIT)
def test_an_adapter_of_another_backbone_is_refused(
    teacher: TeacherFolder, recipe: Recipe, tmp_path: Path, misfit: str
) -> None:
    saved(teacher, recipe, tmp_path / "adapter")
    change, words = MISFIT[misfit]
    change(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    blank = build_student(teacher.transformer.config, recipe.student.modes)
    with pytest.raises(AdapterError, match=words):
        merge_into(blank, teacher.transformer.state_dict(), adapter)


def test_read_config_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter at"):
        read_config(tmp_path / "nowhere")


def test_unknown_architecture() -> None:
    with pytest.raises(RecipeError, match="choose one of flux"):
        architecture("sd3")


def test_pack_is_channel_major_and_unpack_inverts_it() -> None:
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert tokens[0, 1, 4 * 2 + 1] == latents[0, 2, 0, 3]  # second token, channel 2, position (0, 1)
    assert tokens[1, 3, 4 * 1 + 2] == latents[1, 1, 3, 0]  # second row of tokens, channel 1, position (1, 0)
    assert torch.equal(unpack(tokens, 2, 3), latents)
