"""``python -m arcflow.evaluate --recipe tiny --json``: the embedded default's figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run
from foundation.files import atomic_file


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m arcflow.evaluate",
        description="Measure a student, its linear twin and the teacher's Euler steps against the teacher's 100-step "
        "endpoint under the same noise. Writes evaluation.json, grid.png and trajectories.png.",
        epilog="example:\n  python -m arcflow.evaluate --recipe tiny --json",
    )
    add_recipe_options(parser, "--data")
    parser.add_argument("--models", type=Path, help="folder with teacher, adapter, linear, classifier.safetensors "
                        "(default: models/RECIPE)")  # fmt: skip
    parser.add_argument("--adapter", type=Path, help="the student's adapter (default: MODELS/adapter)")
    parser.add_argument("--linear", type=Path, help="the linear twin's adapter (default: MODELS/linear, if there)")
    parser.add_argument("--partial", action="store_const", dest="coverage", const="partial", default="whole",
                        help="take adapters that lack LoRA pairs, whose layers stay the teacher's")  # fmt: skip
    parser.add_argument("--teacher", type=Path, help="FluxPipeline folder (default: MODELS/teacher)")
    parser.add_argument("--classifier", type=Path, help="the judge's weights (default: MODELS/classifier.safetensors)")
    parser.add_argument("--seeds", type=int, help="images per sampler (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="folder for the files (default: .work/RECIPE/evaluation)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, not as a table")
    args = parser.parse_args(argv)
    from arcflow.errors import RecipeError
    from arcflow.recipe import load_recipe, own_teacher

    recipe = load_recipe(args.recipe)
    own_teacher(recipe)
    from arcflow.evaluation.compare import evaluate
    from arcflow.evaluation.plots import sample_grid, trajectory_plot
    from arcflow.tiny.data import load_images
    from arcflow.tiny.stages import MODELS
    from arcflow.tiny.teacher_folder import open_teacher

    if args.seeds is not None:
        if args.seeds < 2:
            raise RecipeError(f"--seeds is {args.seeds}: at least 2 are needed")
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, seeds=args.seeds))
    models = args.models or MODELS / recipe.name
    adapters = {"student": args.adapter or models / "adapter"}
    linear = args.linear or models / "linear"
    if args.linear is not None or linear.is_dir():
        adapters["linear"] = linear
    teacher = open_teacher(args.teacher or models / "teacher")
    images = load_images("test", args.data)
    classifier = args.classifier or models / "classifier.safetensors"
    evaluation = evaluate(recipe, teacher, adapters, classifier, images, _advance, args.coverage)
    out = args.out or Path(".work") / recipe.name / "evaluation"
    text = json.dumps(evaluation.report, indent=2)
    with atomic_file(out / "evaluation.json") as temporary:
        temporary.write_text(text + "\n")
    nfe, steps = recipe.distill.nfe, recipe.evaluate.reference_steps
    sample_grid(evaluation, teacher, nfe, steps, out / "grid.png")
    trajectory_plot(evaluation, nfe, out / "trajectories.png")
    if args.json:
        print(text)
    else:
        _print_table(evaluation.report, out)
    return 0


def _advance(name: str, done: int, total: int) -> None:
    print(
        f"\r{name}: {done}/{total} images   ",
        end="" if done < total else "\n",
        file=sys.stderr,
        flush=True,
    )


def _print_table(report: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("sampler", "NFE", "rel. L2", "Frechet", "PSNR dB", "accuracy", "diversity")
    for kind in ("student", "linear", "teacher"):
        for nfe, row in sorted(report.get(kind, {}).items(), key=lambda item: int(item[0])):
            psnr = "" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
            values = (
                f"{row['rel_l2']:.4f}",
                f"{row['frechet']:.2f}",
                psnr,
                f"{row['accuracy']:.3f}",
            )
            table.add_row(kind, nfe, *values, f"{row['diversity']:.2f}")
    console = Console()
    console.print(table)
    for name in ("path_error", "gain_over_linear", "trainable_fraction", "seeds"):
        console.print(f"{name}: {report.get(name)}")
    for name, held in report["targets"].items():
        console.print(f"{'holds' if held else 'DOES NOT HOLD'}: {name}")
    console.print(f"files in {out}: evaluation.json, grid.png, trajectories.png")


if __name__ == "__main__":
    sys.exit(run(main))
