"""One training loop for every stage: VAE, teacher, guidance, classifier, distillation.

The loop is resumable to the bit: everything random in iteration ``i`` comes from generators seeded by the seed, i, and
an image's place in the batch or the process, so a checkpoint needs no random state: weights, optimiser, averages and
``i`` are all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from arcflow.errors import CheckpointError, RecipeError
from arcflow.recipe import LoopConfig
from arcflow.training.checkpoint import Checkpoints, Progress, set_rate
from arcflow.training.ema import PowerEma
from arcflow.training.optimizer import make_optimizer
from arcflow.training.sharding import piece, replicate, whole


def rate(config: LoopConfig, iteration: int) -> float:
    """The learning rate's factor in (0, 1] at ``iteration`` (0-based): warm-up, then constant or cosine to 2 %."""
    if iteration < config.warmup:
        return (iteration + 1) / (config.warmup + 1)
    if config.decay == "constant":
        return 1.0
    progress = (iteration - config.warmup) / max(1, config.iterations - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Iteration:
    """What one training step is given.

    index: 0-based iteration; generator: a source of randomness (CPU), this process's own; piece: where the loss comes
    in several, the context of one, its forward and its backward, called with whether it is the last: gradients are
    exchanged between processes in that one only. seed: the run's; places: of this process's images in the batch of all.
    """

    index: int
    generator: torch.Generator
    piece: Callable[[bool], AbstractContextManager[Any]]
    seed: int = 0
    places: range = range(1)

    def at(self, index: int) -> Iteration:
        """Another iteration of this run, to look ahead."""
        return replace(self, index=index)

    def rows(self) -> list[torch.Generator]:
        """A generator for each of this process's images, by its place in the batch of all processes."""
        return [self._generator(place) for place in self.places]

    def shared(self, number: int = 0) -> torch.Generator:
        """A generator of what all processes draw alike; each number's is another one."""
        return self._generator(-1 - number)

    def _generator(self, place: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.index} {place}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Step(Protocol):
    """A training step: computes losses on ``module``, runs their backward, returns figures to show.

    A figure named "loss" is shown smoothed, the others as they are; figures are averaged over processes.
    """

    def __call__(self, module: nn.Module, it: Iteration) -> dict[str, float]: ...


MOST_SKIPPED = 20
"""Iterations in a row whose gradient is not finite, after which a run ends."""


@dataclass(frozen=True)
class Look:
    """What is seen of a module at an iteration: figures to show, and an image, uint8 [H, W, 3], where there is one."""

    figures: dict[str, float]
    grid: NDArray[np.uint8] | None = None


Looks = Callable[[int, AbstractContextManager[None]], Look | None]
"""(iterations done, a context in which the module has the weights that it would end with) -> a look, if one is due.

Called in every process, outside of that context."""


class Reporter(Protocol):
    """Told of every iteration: how many are done, figures, and the image of a look."""

    def __call__(self, done: int, figures: dict[str, float], grid: NDArray[np.uint8] | None = None, /) -> None: ...


def fit(
    module: nn.Module,
    step: Step,
    config: LoopConfig,
    workdir: Path,
    *,
    accelerator: Accelerator | None = None,
    groups: Iterable[dict[str, Any]] | None = None,
    report: Reporter | None = None,
    look: Looks | None = None,
    stop_after: int | None = None,
    identity: str = "",
    average: bool = True,
) -> nn.Module:
    """Train ``module`` in place and return it, with the averaged weights where the config asks for them.

    module: where it is sharded already (:mod:`arcflow.training.sharding`), processes train their shares of it, else
    each all of it. workdir: holds ``checkpoints``; where they stand from an interrupted run, that run is continued, to
    the same result, also by another number of processes. groups: optimiser parameter groups (default: all that require
    a gradient); each group's "lr" is relative to the config's, and its "name" tells the figure of its rate.
    look: called after every iteration, once its state is saved; it may change nothing.
    identity: of what else the run is made of, which must be the same where it is continued. stop_after: return early
    after that iteration, as a killed run would have (tests). average: False leaves the last weights all the same.
    An iteration whose gradient is not finite changes nothing and is counted (figure "skipped"). Raises RecipeError
    where processes cannot share the batch evenly, CheckpointError after ``MOST_SKIPPED`` such iterations in a row, and
    when the checkpoint belongs to another configuration, RecipeError while the config's precision is not decided.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    places = share_of(config.batch, accelerator.num_processes, accelerator.process_index)
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    trained = list(named.values())
    parameter_groups: list[dict[str, Any]]
    parameter_groups = [dict(g) for g in groups] if groups is not None else [{"params": trained}]
    scales: dict[str, float] = {g.pop("name", "lr"): g.pop("lr", 1.0) for g in parameter_groups}
    optimizer = make_optimizer(parameter_groups, config)
    ema = PowerEma(trained, config.ema_gamma, config.ema_from) if config.ema_gamma is not None else None
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        fingerprint(config, len(named), identity),
        named,
        optimizer,
        ema,
        accelerator,
        precision="bf16" if config.bf16 else "fp32",
    )
    progress = checkpoints.resume()
    skipped, in_a_row = progress.skipped, 0
    wrapped = replicate(module, accelerator.num_processes)
    wrapped.train()
    for index in range(progress.done, config.iterations):
        rates = {name: config.lr * scale * rate(config, index) for name, scale in scales.items()}
        for group, value in zip(optimizer.param_groups, rates.values(), strict=True):
            set_rate(group, value)
        figures = step(wrapped, _iteration(wrapped, config.seed, index, accelerator.process_index, places))
        clip = config.clip if index >= config.clip_from else math.inf
        norm = float(whole(nn.utils.clip_grad_norm_(trained, clip)))
        if math.isfinite(norm):
            optimizer.step()
            if ema is not None:
                ema.update(trained)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row == MOST_SKIPPED:
                raise CheckpointError(
                    f"the gradient was not finite in {in_a_row} iterations in a row, the last of them {index + 1}: "
                    f"lower lr and give another --workdir; {checkpoints.folder} keeps the state before them"
                )
        optimizer.zero_grad(set_to_none=True)
        done = index + 1
        if done % config.save_every == 0 or done == config.iterations:
            checkpoints.save(Progress(done, skipped))
        seen = look(done, ema.swapped(trained) if ema is not None else nullcontext()) if look is not None else None
        if report is not None:
            figures = {**_averaged(figures, accelerator), "norm": norm, **rates}
            figures |= {"skipped": skipped} if skipped else {}
            if seen is not None:
                report(done, figures | seen.figures, seen.grid)
            elif accelerator.is_main_process:
                report(done, figures)
        if stop_after is not None and done >= stop_after:
            return module
    if ema is not None and average:
        ema.copy_to(trained)
    module.eval()
    return module


def share_of(batch: int, processes: int, process: int) -> range:
    """The places of a process's images in the batch of all. Raises RecipeError where they have no equal shares."""
    if batch % processes:
        raise RecipeError(
            f"batch is {batch}, which {processes} processes cannot share evenly: it must be a multiple of {processes}; "
            "set batch in the recipe, or start another number of processes"
        )
    count = batch // processes
    return range(process * count, (process + 1) * count)


def fingerprint(config: LoopConfig, trained: int, identity: str) -> str:
    """What a run must share with the run that continues it.

    Not how often it saves, nor how a batch is cut; their number of iterations only where the learning rate depends on
    it: a run at a constant rate may be extended. trained: how many tensors are.
    """
    free = {"save_every", "micro_batch"} | ({"iterations"} if config.decay == "constant" else set())
    fixed = {k: v for k, v in asdict(config).items() if k not in free}
    return repr((sorted(fixed.items()), trained, identity))


def _iteration(wrapped: nn.Module, seed: int, index: int, process: int, places: range) -> Iteration:
    """Seed everything of this iteration; the global generator too."""
    mixed = (seed * 1_000_003 + index) * 4_099 + process
    torch.manual_seed(mixed)
    generator = torch.Generator().manual_seed(mixed ^ 0x5DEECE66D)
    return Iteration(index, generator, partial(piece, wrapped), seed, places)


def _averaged(figures: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return figures
    values = torch.tensor(list(figures.values()), device=accelerator.device)
    averaged: Tensor = accelerator.reduce(values, "mean")
    return dict(zip(figures, averaged.tolist(), strict=True))
