"""``torch.distributed.run --nproc-per-node 2 -m tests.arcflow.training.exchanges FOLDER``: distil on several processes.

Each writes ``FOLDER/<rank>.json``: how often gradients were exchanged by the end of each iteration, and a digest of
what was trained.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcflow.architectures import flux
from arcflow.recipe import DistillRecipe, LoopConfig, StudentRecipe
from arcflow.students import Student
from arcflow.training.batches import Batch, Generators, normal
from arcflow.training.distillation import distill_step
from arcflow.training.loop import Iteration, fit
from tests.arcflow.architectures.test_conditioning import FLUX

ITERATIONS, SEGMENTS = 3, 4


def _batch(_: Iteration, generators: Generators) -> Batch:
    text = normal(generators, 8), normal(generators, 5, 24)
    guidance = torch.full((len(generators),), 3.5)
    return Batch(flux.Condition(*text, guidance, flux.image_ids(2, 2), torch.zeros(5, 3)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    teacher = flux.build_backbone(FLUX).requires_grad_(False).eval()
    student = Student(teacher, StudentRecipe(rank=2, modes=3))
    loop = LoopConfig(iterations=ITERATIONS, batch=2, lr=1e-3, warmup=0)
    step = distill_step(student, _batch, 3.2, DistillRecipe(loop, nfe=SEGMENTS))
    exchanged = 0
    ends: list[int] = []

    def hook(_: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal exchanged
        exchanged += 1
        average = bucket.buffer() / torch.distributed.get_world_size()
        return torch.distributed.all_reduce(average, async_op=True).get_future().then(lambda done: done.value()[0])

    def counted(module: nn.Module, it: Iteration) -> dict[str, float]:
        if it.index == 0:
            module.register_comm_hook(None, hook)  # type: ignore[operator]
        figures: dict[str, float] = step(module, it)
        ends.append(exchanged)
        return figures

    fit(student, counted, loop, folder / "work", accelerator=accelerator)
    digest = hashlib.sha256()
    for parameter in student.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    answer = {"processes": accelerator.num_processes, "exchanges": ends, "trained": digest.hexdigest()}
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
