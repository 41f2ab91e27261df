"""The options that name a student's sources: declared once, and repeated in the commands that messages print."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from export.sources.models import MODELS
from foundation.cli import ArgumentParser


def add_source_options(parser: ArgumentParser) -> None:
    """Add ``--model --base --adapter --partial --lora``."""
    parser.add_argument("--model", default="tiny", help=f"one of: {', '.join(MODELS)} (default: tiny)")
    parser.add_argument("--base", help="pipeline folder, or hub id such as owner/name (default: the model's)")
    parser.add_argument("--adapter", help="adapter folder, or hub id such as owner/name/folder (default: the model's)")
    parser.add_argument(
        "--partial",
        action="store_const",
        dest="coverage",
        const="partial",
        default="whole",
        help="take an adapter that lacks LoRA pairs, whose layers stay the base's",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="style LoRA to merge as well, in diffusers, peft, kohya or ComfyUI keys; may be given again",
    )


def add_prompt_options(parser: ArgumentParser, number: int | None = None) -> None:
    """Add ``--prompts --num --size``. number: how many prompts are taken unless told."""
    add = parser.add_argument
    add("--prompts", type=Path, help="text file, one prompt a line (default: the project's own list)")
    add("--num", type=int, default=number, help=f"only the first so many prompts (default: {number or 'all'})")
    add("--size", help="WIDTHxHEIGHT in pixels (default: the model's usual size)")


def add_plan_options(parser: ArgumentParser) -> None:
    """Add ``--resolutions --batch --text-tokens --flavour --opt-level``."""
    add = parser.add_argument
    usual = "default: for a GPU {}, else all that the model takes"
    sizes, images = usual.format("the model's usual size"), usual.format("one")
    add("--resolutions", help=f"pixels, the usual one first: 1024x1024,768x1344 ({sizes})")
    add("--batch", help=f"images a call: 1 or 1-4 ({images})")
    add("--text-tokens", help="text tokens: 512 or 1-512 (default: the model's)")
    add("--flavour", help="tensorrt or tensorrt-rtx (default: what the target takes and is installed)")
    add("--opt-level", type=int, default=3, help="0 (fast build) to 5 (fast plan) (default: 3)")


def source_options(arguments: Namespace) -> tuple[str, ...]:
    """These options as the user gave them."""
    given = [("--model", arguments.model), ("--base", arguments.base), ("--adapter", arguments.adapter)]
    options = [part for option, value in given if value is not None for part in (option, value)]
    options += ["--partial"] if arguments.coverage == "partial" else []
    return (*options, *(part for lora in arguments.lora for part in ("--lora", lora)))


def command(tool: str, options: Sequence[object]) -> str:
    """What to type to run ``export``'s ``tool`` with ``options``."""
    return shlex.join(["python", "-m", f"export.{tool}", *map(str, options)])
