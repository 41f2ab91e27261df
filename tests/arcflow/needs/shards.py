"""``torch.distributed.run --nproc-per-node 2 -m tests.arcflow.needs.shards RECIPE FOLDER``: one sharded iteration.

The recipe's student is sharded as training shards it, and takes two backwards, of which the last exchanges gradients,
and a step of AdamW. Each process writes ``FOLDER/<rank>.json``: bytes of what it then holds, and of what it held
between the two.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from arcflow.field import velocity
from arcflow.needs import iteration as needs
from arcflow.recipe import load_recipe
from arcflow.sources.stored import as_frozen
from arcflow.students import Student, architecture
from arcflow.training.sharding import piece, shard


def local(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of this process's shares of tensors, all of which are shared."""
    found = 0
    for tensor in tensors:
        if tensor is not None:
            assert isinstance(tensor, DTensor)
            found += tensor.to_local().nbytes
    return found


def gathered(module: FSDPModule, inside: Iterable[FSDPModule] = ()) -> tuple[int, int]:
    """Bytes of a module's weights, those inside others of that kind left out, while it runs; of their gradients."""
    module.unshard()
    others = {id(p) for other in inside for p in other.parameters()}  # type: ignore[attr-defined]
    own = [p for p in module.parameters() if id(p) not in others]  # type: ignore[attr-defined]
    assert not any(isinstance(p, DTensor) for p in own)
    found = sum(p.nbytes for p in own), sum(p.grad.nbytes for p in own if p.grad is not None)
    module.reshard()
    return found


def main(source: str, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    init_process_group("gloo")
    recipe = load_recipe(source)
    backbone = architecture(recipe.architecture).build_backbone(recipe.backbone)
    student = Student(as_frozen(backbone, recipe.distill.frozen), recipe.student, recipe.architecture).train()
    sharded, blocks = cast(Any, student), cast(list[Any], student.blocks())
    shard(student, torch.device("cpu"), 2)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    condition = needs._condition(recipe, student.backbone.config, (4, 4), 1)
    x, sigma = torch.zeros(1, 16, student.packed_channels), torch.ones(1)
    for last in (False, True):
        with piece(student, last):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                field = student(x, sigma, condition)
            velocity(field, sigma, sigma).square().mean().backward()
        if not last:
            root, *others = gathered(sharded, blocks), *map(gathered, blocks)
    optimizer.step()
    held = {
        "frozen": local(p for p in student.parameters() if not p.requires_grad),
        "trained": local(trained),
        "gradients": local(p.grad for p in trained),
        "moments": local(state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")),
        "waiting": root[1] + sum(gradients for _, gradients in others),
        "gathered": root[0] + sum(sorted(size for size, _ in others)[-2:]),
    }
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(held))
    destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
