"""Looks at a student in training: what they say is true, and the training is what it would have been without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from arcflow.adapter import WEIGHTS_FILE
from arcflow.distill import choose_base, choose_prompts, distil
from arcflow.errors import BackboneError
from arcflow.pipelines.noise import image_noise
from arcflow.recipe import Recipe, load_recipe
from arcflow.sampling import ClassifierFree, sample_student, sample_teacher
from arcflow.sources.base import Base, find_base
from arcflow.sources.pipeline import open_pipeline
from arcflow.training.ema import PowerEma
from arcflow.training.loop import Look, fit
from arcflow.training.run import Distillation, choose_accelerator, prepare
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen

FAMILIES: dict[str, Callable[[Path], Any]] = {"flux": small_flux, "qwen": small_qwen}
STEPS, IMAGES, WIDTH, HEIGHT = 6, 3, 48, 32


@pytest.fixture(scope="module", params=FAMILIES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Base]:
    """A small pipeline in the published layout and a recipe for it that looks every sixth iteration."""
    base = FAMILIES[request.param](tmp_path_factory.mktemp(request.param)).base
    recipe = load_recipe(request.param)
    loop = replace(
        recipe.distill.loop, iterations=15, batch=2, micro_batch=None, lr=1e-2, warmup=2, precision="fp32", save_every=5
    )
    settings = replace(
        recipe.distill, loop=loop, frozen="fp32", text_tokens=16, sizes=(f"{WIDTH}x{HEIGHT}", "32x32"),
        teacher_share_iterations=15, watch_every=6, watch_images=IMAGES,
    )  # fmt: skip
    student = replace(recipe.student, rank=4, modes=3)
    recipe = replace(
        recipe, student=student, distill=settings, evaluate=replace(recipe.evaluate, reference_steps=STEPS)
    )
    return recipe, find_base(base, recipe.architecture)


def ready(small: tuple[Recipe, Base], workdir: Path) -> Distillation:
    recipe, base = small
    return prepare(recipe, base, CAPTIONS, recipe.student, choose_accelerator("cpu"), workdir=workdir)


def look(found: Distillation, done: int = 6) -> Look:
    assert found.watch is not None
    seen = found.watch.look(done)
    assert seen is not None and seen.grid is not None
    return seen


def test_the_error_falls_and_every_look_is_kept(small: tuple[Recipe, Base], tmp_path: Path) -> None:
    found, shown = ready(small, tmp_path), {}

    def report(done: int, figures: dict[str, float], grid: Any = None) -> None:
        assert ("held_out" in figures) == (grid is not None)
        if grid is not None:
            shown[done] = figures["held_out"], grid

    assert found.watch is not None
    loop = small[0].distill.loop
    fit(found.student, found.step, loop, tmp_path, groups=found.groups, report=report, look=found.watch.look)
    assert list(shown) == [6, 12, 15]
    assert shown[15][0] < shown[12][0] < shown[6][0], shown
    for done, (_, grid) in shown.items():
        assert grid.shape == (IMAGES * HEIGHT, 2 * WIDTH, 3) and grid.dtype == np.uint8
        with Image.open(tmp_path / "looks" / f"{done:06d}.png") as image:
            assert np.array_equal(np.asarray(image), grid)
    # The last look had the averaged weights: those that the run ends with.
    assert look(found, 15).figures["held_out"] == shown[15][0]


def test_a_look_shows_what_sampling_gives(small: tuple[Recipe, Base], tmp_path: Path) -> None:
    recipe, base = small
    found = ready(small, tmp_path)
    seen = look(found)
    student, family, settings = found.student.eval(), base.architecture, recipe.distill
    rows, columns = base.grid(WIDTH, HEIGHT)
    pipeline = open_pipeline(base.folder, torch.float32)
    errors = []
    for row, prompt in enumerate(CAPTIONS[:IMAGES]):
        noise = image_noise(recipe.evaluate.first_seed + row, rows * columns, student.packed_channels)
        condition = family.encode(pipeline, prompt, settings.text_tokens, recipe.guidance, rows, columns)
        guidance = None
        if recipe.guidance_kind == "cfg":
            empty = family.encode(pipeline, family.EMPTY, settings.text_tokens, recipe.guidance, rows, columns)
            guidance = ClassifierFree(recipe.guidance, empty)
        with student.as_teacher() as teacher:
            truth, _ = sample_teacher(family, teacher, noise, condition, STEPS, recipe.shift, guidance)
        ours, _ = sample_student(family, student.backbone, noise, condition, settings.nfe, recipe.shift)
        errors.append(float((ours - truth).norm() / truth.norm()))
        for column, end in enumerate((truth, ours)):
            place = seen.grid[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]  # type: ignore[index]
            away = np.abs(place.astype(int) - pixels(pipeline, family, end, rows, columns))
            assert away.max() <= 1 and away.mean() < 0.01
    assert seen.figures["held_out"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@torch.no_grad()
def pixels(pipeline: Any, family: Any, end: Tensor, rows: int, columns: int) -> np.ndarray:
    """As diffusers makes pixels of an image in [-1, 1]."""
    image = family.decode(pipeline.vae, family.unpack(end, rows, columns))
    found: np.ndarray = pipeline.image_processor.postprocess(image, output_type="np")[0]
    return (found * 255).round().astype(np.uint8)


def test_the_teacher_is_sampled_once(small: tuple[Recipe, Base], tmp_path: Path) -> None:
    recipe, base = small
    evaluations = STEPS * IMAGES * (2 if recipe.guidance_kind == "cfg" else 1)

    def counted(recipe: Recipe) -> tuple[Look, int]:
        found, count = ready((recipe, base), tmp_path), 0

        def hook(*_: object) -> None:
            nonlocal count
            count += 1

        found.student.teacher_layers["proj_out"].register_forward_hook(hook)
        look(found)
        return look(found, 12), count

    first, count = counted(recipe)
    assert count == evaluations
    again, count = counted(recipe)
    assert count == 0 and again.figures == first.figures and np.array_equal(again.grid, first.grid)  # type: ignore[arg-type]
    other, count = counted(replace(recipe, shift=2.0))
    assert count == evaluations and other.figures != first.figures
    (tmp_path / "reference.safetensors").write_bytes(b"no tensors")
    repaired, count = counted(recipe)
    assert count == evaluations and repaired.figures == first.figures


def test_a_look_leaves_everything_as_it_was(small: tuple[Recipe, Base], tmp_path: Path) -> None:
    found = ready(small, tmp_path)
    student = found.student.train()
    trained = [p for p in student.parameters() if p.requires_grad]
    ema = PowerEma(trained, 7.0)
    with torch.no_grad():
        for average in ema.averages:
            average.mul_(1.01)

    def state() -> tuple[list[Tensor], list[bool]]:
        tensors = [*student.state_dict().values(), *ema.averages, torch.get_rng_state()]
        return [tensor.clone() for tensor in tensors], [module.training for module in student.modules()]

    (tensors, modes), own = state(), look(found).figures
    assert found.watch is not None
    averaged = found.watch.look(12, ema.swapped(trained))
    assert averaged is not None and averaged.figures != own
    after, modes_after = state()
    assert all(torch.equal(one, other) for one, other in zip(tensors, after, strict=True)) and modes == modes_after
    assert found.watch.look(11) is None and found.watch.look(0) is not None


def test_a_base_without_its_vae_is_named(small: tuple[Recipe, Base], tmp_path: Path) -> None:
    found = ready(small, tmp_path)
    assert found.watch is not None
    found.watch.base = replace(small[1], folder=tmp_path)
    with pytest.raises(BackboneError, match="cannot read the VAE of"):
        found.watch.look(6)
    assert not (tmp_path / "looks").exists() and found.student.training


def test_training_is_the_same_to_the_bit(teacher_path: Path, recipe: Recipe, tmp_path: Path) -> None:
    """With dropout and averaged weights, killed and continued with other looks."""

    def go(name: str, every: int, stop_after: int | None = None) -> None:
        watched = replace(recipe, distill=replace(recipe.distill, watch_every=every))
        base, prompts = choose_base(recipe, teacher_path, tmp_path), choose_prompts(recipe)
        work, out = tmp_path / name, tmp_path / f"{name}-out"
        distil(watched, base, prompts, recipe.student, work, out, stop_after=stop_after)

    go("unwatched", 0)
    assert not (tmp_path / "unwatched" / "looks").exists()
    go("watched", 2, stop_after=4)
    go("watched", 5)
    assert {path.name for path in (tmp_path / "watched" / "looks").iterdir()} == {
        "000002.png", "000004.png", "000005.png", "000006.png"
    }  # fmt: skip
    files = [tmp_path / f"{name}-out" / WEIGHTS_FILE for name in ("unwatched", "watched")]
    assert files[0].read_bytes() == files[1].read_bytes()
