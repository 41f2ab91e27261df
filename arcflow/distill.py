"""``python -m arcflow.distill --recipe tiny``: distil a two-step student and save its adapter.

Several GPUs: ``accelerate launch -m arcflow.distill --recipe tiny``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from arcflow.recipe import Recipe, StudentRecipe
    from arcflow.students import Student

STUDENTS = ("arcflow", "linear")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m arcflow.distill",
        description="Distil a teacher into a two-step student without data and save the adapter. An interrupted run "
        "resumes where it stopped, to the same result.",
        epilog="examples:\n  python -m arcflow.distill --recipe tiny\n"
        "  python -m arcflow.distill --recipe tiny --student linear --out models/tiny/linear\n"
        "  accelerate launch -m arcflow.distill --recipe tiny",
    )
    add_recipe_options(parser, "--workdir")
    parser.add_argument("--student", choices=STUDENTS, default="arcflow", help="linear: one mode, the baseline")
    parser.add_argument(
        "--teacher",
        type=Path,
        help="FluxPipeline folder (default: WORKDIR/teacher, models/tiny/teacher)",
    )
    parser.add_argument("--out", type=Path, help="adapter folder to write (default: WORKDIR/STUDENT-adapter)")
    parser.add_argument("--iterations", type=int, help="instead of the recipe's number of iterations")
    args = parser.parse_args(argv)
    from arcflow.recipe import load_recipe, own_teacher

    recipe = load_recipe(args.recipe)
    own_teacher(recipe)
    from arcflow.errors import CheckpointError
    from arcflow.tiny.stages import find_teacher

    if args.iterations is not None:
        loop = replace(recipe.distill.loop, iterations=args.iterations)
        recipe = replace(recipe, distill=replace(recipe.distill, loop=loop))
    workdir = args.workdir or Path(".work") / recipe.name
    base = args.teacher or find_teacher(recipe, workdir)
    if not (base / "model_index.json").is_file():
        raise CheckpointError(f"no teacher at {base}: run `python -m arcflow.teacher`, or give --teacher FOLDER")
    out = args.out or workdir / f"{args.student}-adapter"
    student = student_recipe(recipe, args.student)
    print(estimate(replace(recipe, student=student)), file=sys.stderr)
    distil(recipe, base, student, workdir / f"distill-{args.student}", out)
    print(out)
    return 0


def student_recipe(recipe: Recipe, kind: str) -> StudentRecipe:
    """The recipe's student, or the linear baseline: the same with a single mode (a plain velocity)."""
    return recipe.student if kind == "arcflow" else replace(recipe.student, modes=1)


def estimate(recipe: Recipe) -> str:
    """One line: what is trained, and the memory and disk that weights and optimiser need (activations come on top)."""
    from arcflow.inventory import take_inventory

    found, student = take_inventory(recipe), recipe.student
    # teacher and student share what is frozen, in float32; of what is trained also gradient, two moments and average
    memory, disk = 4 * (found.backbone + 5 * found.trained), 4 * 5 * found.trained
    return (
        f"{student.modes} modes, rank {student.rank}: {found.trained:,} trained parameters, {found.share:.2%} of the "
        f"backbone's {found.backbone:,}; {memory / 2**20:.0f} MiB of weights and optimiser, {disk / 2**20:.0f} MiB on "
        "disk"
    )


def distil(
    recipe: Recipe,
    base: Path,
    student: StudentRecipe,
    workdir: Path,
    out: Path,
    stop_after: int | None = None,
) -> Student:
    """Train a student of the pipeline in the folder ``base`` and write its adapter to ``out``.

    stop_after: see ``fit``; a run that is stopped early writes no adapter.
    """
    import torch
    from accelerate import Accelerator

    from arcflow.adapter import save_adapter
    from arcflow.policy import policy_of
    from arcflow.students import Student
    from arcflow.tiny.teacher_folder import SIDE, caption_conditions, open_teacher
    from arcflow.training.distillation import distill_step
    from arcflow.training.loop import fit
    from arcflow.training.progress import reporting

    settings = recipe.distill
    teacher = open_teacher(base)
    torch.manual_seed(settings.loop.seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = Student(teacher.transformer, student, recipe.architecture).to(accelerator.device)
    step = distill_step(
        model,
        caption_conditions(teacher, recipe.guidance),
        (SIDE * SIDE, teacher.packed_channels),
        recipe.shift,
        settings,
    )
    gammas = {id(p) for p in model.gamma_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in gammas]},
        {"params": [p for p in trained if id(p) in gammas], "lr": settings.gamma_lr},
    ]
    with reporting(workdir.name, settings.loop.iterations, workdir / "logs") as report:
        fit(
            model, step, settings.loop, workdir,
            accelerator=accelerator, groups=groups, report=report, stop_after=stop_after,
        )  # fmt: skip
    if stop_after is None and accelerator.is_main_process:
        save_adapter(model, model.backbone.config, policy_of(recipe), out)
    return model


if __name__ == "__main__":
    sys.exit(run(main))
