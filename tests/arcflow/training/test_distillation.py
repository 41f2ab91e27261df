"""The loss, the trajectory, and a run that is killed and continued."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arcflow.adapter import trained_tensors
from arcflow.distill import choose_base, choose_prompts, distil, student_recipe
from arcflow.errors import CheckpointError
from arcflow.field import MomentumField, displacement
from arcflow.recipe import Recipe
from arcflow.schedule import shift_sigma
from arcflow.students import Student
from arcflow.tiny.teacher_folder import open_teacher
from arcflow.training.distillation import (
    Segment,
    interval_lengths,
    keep_modes,
    segment_loss,
    segments,
    teacher_share,
)
from arcflow.training.ema import PowerEma


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(count)]


def run_distil(recipe: Recipe, base: Path, workdir: Path, out: Path, stop_after: int | None = None) -> Student:
    """The command's own way, without the command."""
    opened, prompts = choose_base(recipe, base, workdir), choose_prompts(recipe)
    return distil(recipe, opened, prompts, recipe.student, workdir, out, stop_after=stop_after)


def constant_field(u: Tensor, modes: int = 3) -> MomentumField:
    """A field whose velocity is ``u`` [B, S, C] everywhere."""
    b, s, _ = u.shape
    return MomentumField(
        u[:, :, None].repeat(1, 1, modes, 1),
        torch.full((b, s, modes, 4), -1.0).log_softmax(dim=2),
        torch.zeros(b, s, modes - 1, 4),
    )


def exponential_field(v: Tensor, rate: float) -> MomentumField:
    """One straight mode without weight and one of velocity v * exp(rate * (sigma_src - sigma))."""
    b, s, _ = v.shape
    weights = torch.tensor([-60.0, 0.0])[None, None, :, None].expand(b, s, 2, 4).log_softmax(dim=2)
    return MomentumField(v[:, :, None].repeat(1, 1, 2, 1), weights, torch.full((b, s, 1, 4), rate))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_perfect_constant_field_has_no_loss_and_ends_where_it_should(recipe: Recipe, share: float) -> None:
    u, x = torch.randn(4, 3, 8), torch.randn(4, 3, 8)
    settings = replace(recipe.distill, mode_dropout=0.0)
    segment, shift = Segment(1.0, 0.5), 1.7
    loss, x_dst = segment_loss(constant_field(u), lambda _x, _s: u, x, segment, share, shift, settings, generators(4))
    assert float(loss) < 1e-9
    torch.testing.assert_close(x_dst, x - u * (1.0 - shift_sigma(0.5, shift)), rtol=1e-5, atol=1e-5)


def test_a_curved_teacher_is_matched_by_its_own_curve_alone(recipe: Recipe) -> None:
    v, x = torch.randn(8, 3, 8), torch.randn(8, 3, 8)
    # no window and only student steps: the target is compared with the local velocity
    settings = replace(recipe.distill, mode_dropout=0.0, window=0.0)

    def teacher(_: Tensor, sigma: Tensor) -> Tensor:
        return v * torch.exp(1.3 * (1.0 - sigma))[:, None, None]

    def loss(field: MomentumField) -> float:
        return float(segment_loss(field, teacher, x, Segment(1.0, 0.5), 0.0, 1.7, settings, generators(8))[0])

    assert loss(exponential_field(v, 1.3)) < 1e-9
    assert loss(constant_field(v)) > 0.01


def test_the_loss_is_scaled_mean_squared_error(recipe: Recipe) -> None:
    x = torch.zeros(2, 1, 4)
    settings = replace(recipe.distill, mode_dropout=0.0)
    loss, _ = segment_loss(
        constant_field(torch.zeros(2, 1, 4)), lambda _x, _s: torch.full((2, 1, 4), 2.0), x, Segment(1.0, 0.5),
        1.0, 1.0, settings, generators(2),
    )  # fmt: skip
    assert float(loss) == pytest.approx(30.0 * 0.5 * 4.0)


def test_the_trajectory_does_not_carry_gradient_but_the_prediction_does(recipe: Recipe) -> None:
    field = constant_field(torch.randn(2, 3, 8))
    leaves = [t.clone().requires_grad_() for t in (field.means, field.logweights, field.loggammas)]
    loss, x_dst = segment_loss(
        MomentumField(*leaves), lambda x, _s: x, torch.randn(2, 3, 8), Segment(0.5, 0.0), 0.3, 1.7,
        recipe.distill, generators(2),
    )  # fmt: skip
    assert not x_dst.requires_grad
    loss.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.abs().sum() > 0) for leaf in leaves)


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
def test_interval_lengths_fill_the_segment(share: float) -> None:
    student, teacher = interval_lengths(0.5, share, 4, generators(64))
    assert bool((student >= 0).all()) and bool((teacher >= 0).all())
    torch.testing.assert_close(teacher.sum(dim=1), torch.full((64,), 0.5 * share))
    assert bool((student.sum(dim=1) <= 0.5 * (1 - share) + 1e-6).all())


def test_share_and_segments(recipe: Recipe) -> None:
    settings = replace(recipe.distill, teacher_share_iterations=100)
    assert [teacher_share(i, settings) for i in (0, 50, 100, 500)] == [1.0, 0.5, 0.0, 0.0]
    parts = segments(3, 0.5)
    assert sum(s.length for s in parts) == pytest.approx(1.0)
    assert parts[-1].length == pytest.approx(0.5 * parts[0].length) and parts[-1].end == 0.0


def test_mode_dropout_never_drops_all() -> None:
    keep = keep_modes(2, 0.9, generators(2000))
    assert bool(keep.any(dim=2).all())
    assert float(keep_modes(16, 0.1, generators(2000)).float().mean()) == pytest.approx(0.9, abs=0.01)


def test_power_ema_copies_first_and_then_averages() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    ema = PowerEma(weights, 7.0)
    values = [3.0, 5.0, 4.0]
    expected = 0.0
    for t, value in enumerate(values, start=1):
        weights[0].data.fill_(value)
        ema.update(weights)
        decay = (1 - 1 / t) ** 8
        expected = decay * expected + (1 - decay) * value
    ema.copy_to(weights)
    assert float(weights[0].detach()) == pytest.approx(expected)


def test_power_ema_copies_until_it_starts() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    ema = PowerEma(weights, 7.0, start=3)
    for value in (3.0, 5.0, 4.0, 7.0):
        weights[0].data.fill_(value)
        ema.update(weights)
        assert float(ema.averages[0]) == value
    weights[0].data.fill_(6.0)
    ema.update(weights)
    assert float(ema.averages[0]) == pytest.approx(6.0 + (1 - 1 / 2) ** 8)


def test_killed_and_continued_gives_the_same_bits(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    whole = run_distil(recipe, teacher_path, tmp_path / "a", tmp_path / "a-out")
    run_distil(recipe, teacher_path, tmp_path / "b", tmp_path / "b-out", stop_after=3)
    assert not (tmp_path / "b-out").exists()
    continued = run_distil(recipe, teacher_path, tmp_path / "b", tmp_path / "b-out")
    for (name, a), b in zip(trained_tensors(whole).items(), trained_tensors(continued).values(), strict=True):
        assert torch.equal(a, b), name
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a-out" / weights).read_bytes() == (tmp_path / "b-out" / weights).read_bytes()


def test_a_checkpoint_of_other_settings_is_refused(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    run_distil(recipe, teacher_path, tmp_path / "run", tmp_path / "out", stop_after=2)
    other = replace(recipe, distill=replace(recipe.distill, loop=replace(recipe.distill.loop, lr=5e-4)))
    with pytest.raises(CheckpointError, match="other settings"):
        run_distil(other, teacher_path, tmp_path / "run", tmp_path / "out")


def test_a_finished_run_at_a_constant_rate_can_be_extended(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    constant = replace(recipe.distill.loop, decay="constant")
    short = replace(recipe, distill=replace(recipe.distill, loop=constant))
    longer = replace(recipe, distill=replace(recipe.distill, loop=replace(constant, iterations=9)))
    whole = run_distil(longer, teacher_path, tmp_path / "a", tmp_path / "a-out")
    run_distil(short, teacher_path, tmp_path / "b", tmp_path / "b-out")
    extended = run_distil(longer, teacher_path, tmp_path / "b", tmp_path / "b-out")
    for (name, a), b in zip(trained_tensors(whole).items(), trained_tensors(extended).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["run.json", ".metadata", "__0_0.distcp"])
def test_a_damaged_checkpoint_is_refused(teacher_path: Path, recipe: Recipe, tmp_path: Path, name: str) -> None:
    run_distil(recipe, teacher_path, tmp_path / "run", tmp_path / "out", stop_after=5)
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert newest.name == "4"
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=f"cannot read {newest}.*delete it"):
        run_distil(recipe, teacher_path, tmp_path / "run", tmp_path / "out")


def test_the_linear_student_has_one_mode(recipe: Recipe) -> None:
    assert student_recipe(recipe, "linear").modes == 1
    assert student_recipe(recipe, "arcflow") is recipe.student


def test_a_log_for_tensorboard_is_written(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    loop = replace(recipe.distill.loop, iterations=10)
    longer = replace(recipe, distill=replace(recipe.distill, loop=loop))
    run_distil(longer, teacher_path, tmp_path / "run", tmp_path / "out")
    assert list((tmp_path / "run" / "logs").glob("events.out.tfevents.*"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["arcflow_policy"] == {
        "shift": 1.7,
        "guidance": 2.0,
        "nfe": 2,
        "final_step_ratio": 1.0,
        "conditioning_dtype": "bfloat16",
    }


def test_the_error_falls(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    """A few dozen iterations bring two steps closer to the teacher's own trajectory, on noise never trained on."""
    from arcflow.sampling import sample_student, sample_teacher

    loop = replace(recipe.distill.loop, iterations=60, batch=16, warmup=5, lr=3e-3)
    longer = replace(recipe, distill=replace(recipe.distill, loop=loop, teacher_share_iterations=30))
    teacher = open_teacher(teacher_path)
    condition = teacher.condition(["a lion", "a rose", "a tiger", "a star"], recipe.guidance)
    noise = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    untrained = Student(deepcopy(teacher.transformer), recipe.student).eval()
    arch = untrained.architecture
    truth, _ = sample_teacher(arch, teacher.transformer, noise, condition, 40, recipe.shift)

    def error(student: Student) -> float:
        x, _ = sample_student(arch, student.eval().backbone, noise, condition, 2, recipe.shift)
        return float((x - truth).norm() / truth.norm())

    trained = run_distil(longer, teacher_path, tmp_path / "run", tmp_path / "out")
    assert error(trained) < 0.9 * error(untrained)


def test_displacement_of_the_test_fields() -> None:
    v = torch.randn(1, 1, 4)
    step = displacement(exponential_field(v, 0.0), torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.5))
    torch.testing.assert_close(step, -0.5 * v)
