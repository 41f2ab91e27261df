"""``accelerate launch --multi_gpu --num_processes 2 -m tests.arcflow.training.processes FOLDER RUN...``: together.

FOLDER holds ``small.toml``, a recipe. A RUN is ``NAME[+shard][+stop]``: with ``FOLDER/NAME`` as its work folder, the
weights shared between the processes or whole in each, stopped after ``STOP`` iterations or run to its end. Each process
writes ``FOLDER/NAME.<rank>.json``: losses, held-out errors, and a digest of what was trained.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

import torch

from arcflow.adapter import save_adapter, trained_tensors
from arcflow.distill import choose_base, choose_prompts
from arcflow.policy import policy_of
from arcflow.recipe import load_recipe
from arcflow.training.loop import fit
from arcflow.training.run import choose_accelerator, prepare
from arcflow.training.sharding import whole
from arcflow.training.watch import HELD_OUT

STOP = 3


def distil(folder: Path, name: str, sharded: bool, stop: bool) -> list[float]:
    """The command's own way, with every loss returned; writes the adapter of a whole run to ``FOLDER/NAME-out``."""
    recipe = load_recipe(str(folder / "small.toml"))
    accelerator = choose_accelerator("cpu", sharded)
    base = choose_base(recipe, None, Path())
    ready = prepare(
        recipe, base, choose_prompts(recipe), recipe.student, accelerator, sharded=sharded, workdir=folder / name
    )
    losses: list[float] = []
    held_out: list[float] = []

    def report(_: int, figures: dict[str, float], grid: object = None) -> None:
        losses.append(figures["loss"])
        held_out.extend(figures[name] for name in figures if name == HELD_OUT)

    fit(
        ready.student, ready.step, recipe.distill.loop, folder / name, accelerator=accelerator, groups=ready.groups,
        identity=ready.identity, report=report, look=ready.watch.look if ready.watch else None,
        stop_after=STOP if stop else None,
    )  # fmt: skip
    tensors = {key: whole(tensor).detach() for key, tensor in trained_tensors(ready.student).items()}
    digest = sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()
    if accelerator.is_main_process and not stop:
        save_adapter(ready.student, base.config, policy_of(recipe), folder / f"{name}-out", trained=tensors)
    answer = {"processes": accelerator.num_processes, "trained": digest, "losses": losses, "held_out": held_out}
    (folder / f"{name}.{accelerator.process_index}.json").write_text(json.dumps(answer))
    accelerator.wait_for_everyone()
    return losses


def main(folder: Path, runs: list[str]) -> None:
    torch.set_num_threads(1)
    for run in runs:
        name, *options = run.split("+")
        distil(folder, name, "shard" in options, "stop" in options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
