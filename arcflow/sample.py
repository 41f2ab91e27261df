"""``python -m arcflow.sample "a prompt"``: an image of a student by diffusers' pipeline, before any export."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run
from foundation.files import slug

if TYPE_CHECKING:
    from arcflow.recipe import Recipe

_DTYPES = ("float32", "float16", "bfloat16")
_EXAMPLES = """examples:
  python -m arcflow.sample --recipe tiny "a smiling face with sunglasses"
  python -m arcflow.sample --recipe flux --adapter arcflow-flux "a red fox in snow" --device cuda --dtype bfloat16
  python -m arcflow.sample --recipe qwen --base Qwen-Image --adapter arcflow-qwen "a sign: hello" --nfe 4 --out sign.png

A seed means the same noise here and in the runtimes: in float32 the image is that of the student's fp32 or fp16
bundle for a CPU, to 1/255.
"""
_FOLDER = Path("arcflow-out")
_OWN_SIDE, _SIDE, _TOKENS = 64, 1024, 512
_MOST_TOKENS = {"flux": 512, "qwen": 1024}
"""What the pipelines of diffusers take."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the image, write it, print where; returns 0. Raises ArcFlowError; nothing is written then."""
    parser = ArgumentParser(
        prog="python -m arcflow.sample",
        description="Generate one image from a student in torch, by diffusers' own pipeline.",
        epilog=_EXAMPLES,
    )
    add = parser.add_argument
    add("prompt", help="what the image should show")
    add_recipe_options(parser)
    add("--base", help="the teacher's pipeline: a diffusers folder or a hub id (default: models/RECIPE/teacher, or the "
        "recipe's base)")  # fmt: skip
    add("--adapter", help="the student's adapter: a folder or a hub id (default: models/RECIPE/adapter)")
    add("--partial", action="store_const", dest="coverage", const="partial", default="whole",
        help="take an adapter that lacks LoRA pairs, whose layers stay the teacher's")  # fmt: skip
    add("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: %(default)s)")
    add("--width", type=int, metavar="PX", help=f"default: {_SIDE}; {_OWN_SIDE} for tiny")
    add("--height", type=int, metavar="PX", help=f"default: {_SIDE}; {_OWN_SIDE} for tiny")
    add("--nfe", type=int, help="network evaluations (default: the adapter's)")
    add("--guidance", type=float, help="FLUX's guidance, an input (default: the adapter's); Qwen-Image has it built in")
    add("--text-tokens", type=int, metavar="N", help=f"longest prompt (default: {_TOKENS}; tiny's own)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    add("--dtype", choices=_DTYPES, default="float32", help="of all networks (default: %(default)s)")
    add("--offload", action="store_true", help="networks are on the GPU one at a time: slower, smaller")
    add("--out", type=Path, metavar="FILE.png", help=f"where to write (default: {_FOLDER}/PROMPT-SEED.png)")
    arguments = parser.parse_args(argv)
    for name in ("width", "height", "nfe", "text_tokens"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.guidance is not None and not 0 <= arguments.guidance < float("inf"):
        parser.error("--guidance must be finite and 0 or more")
    if not 0 <= arguments.seed < 1 << 64:
        parser.error("--seed must be from 0 to 2^64 - 1")
    out = arguments.out or _FOLDER / f"{slug(arguments.prompt)}-{arguments.seed}.png"
    if out.suffix.lower() != ".png" or out.is_dir():
        parser.error(f"--out is {out}; it must be a file that ends with .png")
    if arguments.offload and arguments.device == "cpu":
        parser.error("--offload needs a GPU: add --device cuda")
    from arcflow.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    if arguments.guidance is not None and recipe.guidance_kind == "cfg":
        parser.error(f"--guidance is no input of {recipe.name}: its student has the guidance built in; leave it out")
    if (arguments.text_tokens or 1) > (most := _MOST_TOKENS[recipe.architecture]):
        parser.error(f"--text-tokens is {arguments.text_tokens}; at most {most} are allowed for {recipe.name}")
    _generate(arguments, recipe, out)
    print(out)
    return 0


def _generate(arguments: Namespace, recipe: Recipe, out: Path) -> None:
    """Make the image and write it."""
    import torch

    from arcflow.errors import RecipeError
    from arcflow.pipelines.generation import open_generator, save_image
    from arcflow.sources.base import find_base
    from arcflow.sources.hub import resolve_adapter
    from arcflow.sources.pipeline import choose_device
    from arcflow.tiny.stages import MODELS
    from arcflow.tiny.text import T5_TOKENS

    own = recipe.teacher is not None
    source = arguments.base or (MODELS / recipe.name / "teacher" if own else recipe.base)
    if source is None:
        raise RecipeError(f"recipe {recipe.name!r} names no base; give --base FOLDER or a hub id")
    device = choose_device(arguments.device)
    adapter = resolve_adapter(arguments.adapter or MODELS / recipe.name / "adapter")
    side = _OWN_SIDE if own else _SIDE
    generator = open_generator(
        find_base(source, recipe.architecture),
        adapter,
        device=device,
        dtype=getattr(torch, arguments.dtype),
        size=(arguments.width or side, arguments.height or side),
        tokens=arguments.text_tokens or (T5_TOKENS if own else _TOKENS),
        coverage=arguments.coverage,
        nfe=arguments.nfe,
        guidance=arguments.guidance,
        offload=arguments.offload,
    )
    image = generator.image(arguments.prompt, arguments.seed)
    about = {"prompt": arguments.prompt, "seed": arguments.seed, "base": str(source)}
    save_image(image, generator.settings | about, out)


if __name__ == "__main__":
    sys.exit(run(main))
