"""``python -m arcflow.distill`` on small pipelines in the published layout: FLUX's and Qwen-Image's, by one path."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from arcflow import distill
from arcflow.adapter import WEIGHTS_FILE, read_adapter, trained_tensors
from arcflow.distill import choose_base, choose_prompts, distil, estimate
from arcflow.errors import CheckpointError
from arcflow.prompts.lists import Prompts
from arcflow.recipe import Recipe, load_recipe
from arcflow.sources.base import Base
from arcflow.students import Student, check_coverage
from arcflow.training.loop import fit
from arcflow.training.run import choose_accelerator, prepare
from foundation.cli import run
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen

FAMILIES = {"flux": small_flux, "qwen": small_qwen}
ITERATIONS = 30


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An architecture, and a folder that holds its pipeline in ``base`` and a recipe ``small.toml`` for it."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder)
    base, prompts = folder / "base", folder / "prompts.txt"
    prompts.write_text("\n".join(CAPTIONS), encoding="utf-8")
    (folder / "small.toml").write_text(
        f"extends = '{request.param}'\nname = 'small'\nbase = '{base}'\n[student]\nrank = 4\nmodes = 3\n"
        f"[distill]\nprompts = ['{prompts}']\ntext_tokens = 16\nsizes = ['32x32', '48x32']\n"
        "watch_every = 0\n"
        "teacher_share_iterations = 15\n"
        f"loop = {{ iterations = {ITERATIONS}, batch = 4, lr = 1e-2, warmup = 2, save_every = 5 }}\n"
    )
    return request.param, folder


@pytest.fixture
def small(family: tuple[str, Path]) -> tuple[Recipe, Base, Prompts]:
    recipe = load_recipe(str(family[1] / "small.toml"))
    return recipe, choose_base(recipe, None, Path()), choose_prompts(recipe)


@pytest.mark.parametrize("frozen", ["bf16", "fp8"])
def test_the_loss_falls(small: tuple[Recipe, Base, Prompts], tmp_path: Path, frozen: Literal["bf16", "fp8"]) -> None:
    recipe, base, prompts = small
    recipe = replace(recipe, distill=replace(recipe.distill, frozen=frozen))
    accelerator = choose_accelerator("cpu")
    ready = prepare(recipe, base, prompts, recipe.student, accelerator)
    losses: list[float] = []
    fit(
        ready.student, ready.step, recipe.distill.loop, tmp_path, accelerator=accelerator, groups=ready.groups,
        report=lambda _, figures: losses.append(figures["loss"]),
    )  # fmt: skip
    assert len(losses) == ITERATIONS
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5]), losses


@pytest.mark.parametrize("more", [[], ["--frozen", "fp8"]])
def test_the_command_saves_an_adapter_that_opens(
    family: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    folder = family[1]
    options = [*more, "--device", "cpu", "--iterations", "2", "--workdir", str(tmp_path / "work")]
    assert run(distill.main, ["--recipe", str(folder / "small.toml"), *options]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "work" / "arcflow-adapter") and "4 prompts" in said.err
    adapter = read_adapter(tmp_path / "work" / "arcflow-adapter")
    assert adapter.config.modes == 3 and adapter.config.policy.conditioning_dtype == "bfloat16"
    assert {tensor.dtype for tensor in adapter.whole.values()} == {torch.bfloat16}
    base = choose_base(load_recipe(str(folder / "small.toml")), None, Path())
    check_coverage(adapter.lora, base.blank(), base.architecture, "whole")
    published = json.loads((folder / "adapter" / "config.json").read_text())
    assert adapter.config.class_name == published["_class_name"]


def test_stored_in_fp8_blocks_run_again_in_the_backward_change_nothing(
    small: tuple[Recipe, Base, Prompts], tmp_path: Path
) -> None:
    recipe, base, prompts = small
    loop, written = replace(recipe.distill.loop, iterations=2), []
    for again in (False, True):
        chosen = replace(recipe, distill=replace(recipe.distill, frozen="fp8", checkpointing=again, loop=loop))
        distil(chosen, base, prompts, recipe.student, tmp_path / f"{again}", tmp_path / f"{again}-out")
        written.append((tmp_path / f"{again}-out" / WEIGHTS_FILE).read_bytes())
    assert written[0] == written[1]


def test_killed_and_continued_gives_the_same_bits(small: tuple[Recipe, Base, Prompts], tmp_path: Path) -> None:
    recipe, base, prompts = small
    loop = replace(recipe.distill.loop, iterations=6, save_every=3)
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop))

    def go(name: str, stop_after: int | None = None) -> Student:
        work, out = tmp_path / name, tmp_path / f"{name}-out"
        return distil(recipe, base, prompts, recipe.student, work, out, stop_after=stop_after)

    whole = go("whole")
    go("broken", stop_after=4)  # One iteration is lost.
    continued = go("broken")
    for (name, a), b in zip(trained_tensors(whole).items(), trained_tensors(continued).values(), strict=True):
        assert torch.equal(a, b), name
    written = [tmp_path / f"{name}-out" / WEIGHTS_FILE for name in ("whole", "broken")]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_run_is_not_continued_with_something_else(
    family: tuple[str, Path], small: tuple[Recipe, Base, Prompts], tmp_path: Path
) -> None:
    recipe, base, prompts = small
    recipe = replace(recipe, distill=replace(recipe.distill, loop=replace(recipe.distill.loop, save_every=1)))
    sizes = replace(recipe, distill=replace(recipe.distill, sizes=("32x32",)))
    FAMILIES[family[0]](tmp_path, seed=1)
    other = choose_base(recipe, tmp_path / "base", Path())

    def go(recipe: Recipe, base: Base, prompts: Prompts, stop_after: int) -> None:
        distil(recipe, base, prompts, recipe.student, tmp_path / "work", tmp_path / "out", stop_after=stop_after)

    go(recipe, base, prompts, 1)
    for changed in ((sizes, base, prompts), (recipe, other, prompts), (recipe, base, list(prompts)[1:])):
        with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
            go(*changed, 2)
    go(recipe, base, list(prompts), 2)


def test_the_dry_run_says_what_a_step_takes(
    family: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, work = str(family[1] / "small.toml"), tmp_path / "work"
    options = ["--recipe", recipe, "--dry-run", "--workdir", str(work), "--gpu-memory"]
    assert run(distill.main, [*options, "24"]) == 0
    said = capsys.readouterr().out
    assert "on one GPU: 4 images of 48x32, 4 at once" in said and "blocks run again in the backward" in said
    assert "fits a GPU of 24 GB" in said and "gathered" not in said
    assert run(distill.main, [*options, "0.5", "--gpus", "2", "--shard"]) == 0
    said = capsys.readouterr().out
    assert "on each of 2 GPUs: 2 images of 48x32, 2 at once" in said and "gathered from the other GPUs" in said
    assert "does not fit a GPU of 0.5 GB" in said
    assert not work.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run", "--gpus", "0"], "--gpus is 0: it must be 1 or more"),
        (["--dry-run", "--gpus", "3"], "batch is 16, which 3 processes cannot share evenly"),
        (["--dry-run", "--shard"], "give --gpus 2 or more"),
        (["--dry-run", "--gpu-memory", "nan"], "it must be a positive number of GB"),
        (["--gpus", "2"], "--gpus and --gpu-memory are for --dry-run"),
    ],
)
def test_a_dry_run_refuses_nonsense(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the recipe's own shapes: its base is not there, and not looked for."""
    try:
        code: Any = run(distill.main, ["--recipe", "flux", *options])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2 and said in told and told.count("\n") == 1


@pytest.mark.parametrize("family", ["flux"], indirect=True)
def test_compiled_blocks_train_the_same_student(
    small: tuple[Recipe, Base, Prompts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's front alone: what it generates takes minutes of a CPU to compile."""
    recipe, base, prompts = small
    accelerator, found = choose_accelerator("cpu"), []
    for compiled in (False, True):
        loop = replace(recipe.distill.loop, iterations=2)
        settings = replace(recipe.distill, loop=loop, compile=compiled, sizes=("32x32",))
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
            ready = prepare(replace(recipe, distill=settings), base, prompts, recipe.student, accelerator)
        losses: list[float] = []
        fit(
            ready.student, ready.step, loop, tmp_path / str(compiled), accelerator=accelerator, groups=ready.groups,
            report=lambda _, figures, losses=losses: losses.append(figures["loss"]),
        )  # fmt: skip
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_cached_encodings_train_the_same_student(small: tuple[Recipe, Base, Prompts], tmp_path: Path) -> None:
    recipe, base, prompts = small
    recipe = replace(recipe, distill=replace(recipe.distill, loop=replace(recipe.distill.loop, iterations=2)))
    weights = []
    for name, options in {"live": {}, "turns": {"placement": "turns"}, "cached": {"cache": tmp_path / "cache"}}.items():
        distil(recipe, base, prompts, recipe.student, tmp_path / name, tmp_path / f"{name}-out", **options)  # type: ignore[arg-type]
        weights.append((tmp_path / f"{name}-out" / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1] == weights[2]


def test_the_estimate_is_of_the_base_that_is_there(small: tuple[Recipe, Base, Prompts]) -> None:
    recipe, base, prompts = small
    count = sum(p.numel() for p in base.blank().parameters())
    assert f"backbone's {count:,}" in estimate(recipe, base, prompts)
