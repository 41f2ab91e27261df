"""``python -m arcflow.info --recipe flux``: what a recipe trains, counted without memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arcflow.recipe import add_recipe_options
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from arcflow.needs.inventory import Inventory


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m arcflow.info",
        description="Show a recipe's student: parameters of the backbone and of what is trained, size of the adapter, "
        "noise levels. Counted on torch's meta device: a backbone of any size takes no memory and no download.",
        epilog="examples:\n  python -m arcflow.info --recipe flux\n"
        "  python -m arcflow.info --recipe qwen-released --json",
    )
    add_recipe_options(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, not as a table")
    args = parser.parse_args(argv)
    from arcflow.recipe import load_recipe

    recipe = load_recipe(args.recipe)
    from arcflow.needs.inventory import take_inventory

    inventory = take_inventory(recipe)
    if args.json:
        print(json.dumps(summary(inventory), indent=2))
    else:
        _print_table(inventory)
    return 0


def summary(inventory: Inventory) -> dict[str, Any]:
    """The figures as plain data: parameters and bytes are counts, shares lie in [0, 1]."""
    import torch

    recipe = inventory.recipe
    return {
        "recipe": recipe.name,
        "architecture": recipe.architecture,
        "base": recipe.base,
        "backbone_parameters": inventory.backbone,
        "trained_parameters": inventory.trained,
        "trained_share": inventory.share,
        "lora_parameters": inventory.lora,
        "head_parameters": inventory.head,
        "norm_out_parameters": inventory.norm_out,
        "adapted_linears": inventory.linears,
        "rank": recipe.student.rank,
        "largest_rank_under_5_percent": inventory.largest_rank,
        "modes": recipe.student.modes,
        "adapter_bytes_bf16": inventory.adapter_bytes(torch.bfloat16),
        "nfe": recipe.distill.nfe,
        "sigmas": list(inventory.sigmas),
        "shift": recipe.shift,
        "guidance": recipe.guidance,
        "guidance_kind": recipe.guidance_kind,
    }


def _print_table(inventory: Inventory) -> None:
    import torch
    from rich.console import Console
    from rich.table import Table

    recipe = inventory.recipe
    table = Table(title=f"{recipe.name}: {recipe.base or 'trained by its recipe'}", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("of backbone", justify="right")
    parts = {
        f"LoRA, rank {recipe.student.rank}, on {inventory.linears} linears": inventory.lora,
        f"momentum head, {recipe.student.modes} modes": inventory.head,
        "norm_out": inventory.norm_out,
        "trained in all": inventory.trained,
        "backbone": inventory.backbone,
    }
    for name, count in parts.items():
        if name == "trained in all":
            table.add_section()
        table.add_row(name, f"{count:,}", f"{count / inventory.backbone:.2%}")
    console = Console()
    console.print(table)
    levels = ", ".join(f"{sigma:.6g}" for sigma in inventory.sigmas)
    guidance = {"embedded": "an input of the backbone", "cfg": "two evaluations of the teacher"}[recipe.guidance_kind]
    console.print(f"adapter: {inventory.adapter_bytes(torch.bfloat16):,} bytes in bf16", highlight=False)
    console.print(f"largest rank under 5 %: {inventory.largest_rank}", highlight=False)
    console.print(f"{recipe.distill.nfe} evaluations, sigma {levels} (shift {recipe.shift})", highlight=False)
    console.print(f"guidance {recipe.guidance}: {guidance}", highlight=False)


if __name__ == "__main__":
    sys.exit(run(main))
