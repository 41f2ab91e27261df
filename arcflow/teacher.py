"""``python -m arcflow.teacher --recipe tiny``: train the embedded default's teacher."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m arcflow.teacher",
        description="Train a recipe's teacher and save it as a diffusers FluxPipeline folder. An interrupted run "
        "resumes where it stopped.",
        epilog="example:\n  python -m arcflow.teacher --recipe tiny",
    )
    add_recipe_options(parser, "--workdir", "--data")
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="a trained VAE, a diffusers folder, in place of the recipe's"
    )
    args = parser.parse_args(argv)
    from arcflow.recipe import load_recipe, own_teacher

    recipe = load_recipe(args.recipe)
    own_teacher(recipe)
    from arcflow.tiny.stages import train_teacher

    folder = train_teacher(recipe, args.workdir or Path(".work") / recipe.name, args.data, args.vae)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
