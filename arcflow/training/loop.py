"""One training loop for every stage: VAE, teacher, guidance, classifier, distillation.

The loop is resumable to the bit: everything random in iteration ``i`` comes from a generator seeded by
(seed, i, process), so a checkpoint needs no random state: weights, optimiser, averages and ``i`` are all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcflow.errors import CheckpointError
from arcflow.recipe import LoopConfig
from arcflow.training.ema import PowerEma
from foundation.files import atomic_file


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

    index: 0-based iteration; generator: the only source of randomness of the step (CPU); backward: call it with
    each piece of the loss; piece: where there are several, the context of one, its forward and its backward, called
    with whether it is the last: gradients are exchanged between processes in that one only. seed: the run's; process:
    number of this one.
    """

    index: int
    generator: torch.Generator
    backward: Callable[[Tensor], None]
    piece: Callable[[bool], AbstractContextManager[Any]]
    seed: int = 0
    process: int = 0

    def at(self, index: int) -> Iteration:
        """Another iteration of this run, to look ahead."""
        return replace(self, index=index)

    def rows(self, count: int) -> list[torch.Generator]:
        """A generator for each of this process's ``count`` images, by its place in the batch of all processes."""
        return [self._generator(self.process * count + row) for row in range(count)]

    def shared(self) -> torch.Generator:
        """A generator of what all processes draw alike."""
        return self._generator(-1)

    def _generator(self, place: int) -> torch.Generator:
        digest = blake2b(f"{self.seed} {self.index} {place}".encode(), digest_size=4).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class Step(Protocol):
    """A training step: computes losses on ``module``, calls ``it.backward``, returns figures to show.

    A figure named "loss" is shown smoothed, the others as they are.
    """

    def __call__(self, module: nn.Module, it: Iteration) -> dict[str, float]: ...


MOST_SKIPPED = 20
"""Iterations in a row whose gradient is not finite, after which a run ends."""

Reporter = Callable[[int, dict[str, float]], None]


def fit(
    module: nn.Module,
    step: Step,
    config: LoopConfig,
    workdir: Path,
    *,
    accelerator: Accelerator | None = None,
    groups: Iterable[dict[str, Any]] | None = None,
    report: Reporter | None = None,
    stop_after: int | None = None,
    identity: str = "",
) -> nn.Module:
    """Train ``module`` in place and return it, with the averaged weights where the config asks for them.

    workdir: holds ``checkpoint.pt``; where it stands from an interrupted run, that run is continued, to the same
    result. groups: optimiser parameter groups (default: all that require a gradient); each group's "lr" is
    relative to the config's. identity: of what else the run is made of, which must be the same where it is continued.
    stop_after: return early after that iteration, as a killed run would have (tests).
    An iteration whose gradient is not finite changes nothing and is counted (figure "skipped"). Raises
    CheckpointError after ``MOST_SKIPPED`` of them in a row, and when the checkpoint belongs to another configuration.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    trained = [p for p in module.parameters() if p.requires_grad]
    parameter_groups: list[dict[str, Any]]
    parameter_groups = [dict(g) for g in groups] if groups is not None else [{"params": trained}]
    scales: list[float] = [g.pop("lr", 1.0) for g in parameter_groups]
    optimizer = torch.optim.AdamW(
        parameter_groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    ema = PowerEma(trained, config.ema_gamma) if config.ema_gamma is not None else None
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    checkpoint = _Checkpoint(workdir / "checkpoint.pt", config, named, optimizer, ema, identity)
    start, skipped = checkpoint.resume()
    in_a_row = 0
    wrapped, prepared = accelerator.prepare(module, optimizer)
    wrapped.train()
    for index in range(start, config.iterations):
        for group, scale in zip(prepared.param_groups, scales, strict=True):
            group["lr"] = config.lr * scale * rate(config, index)
        figures = step(wrapped, _iteration(accelerator, wrapped, config.seed, index))
        norm = float(accelerator.clip_grad_norm_(trained, config.clip))
        if math.isfinite(norm):
            prepared.step()
            if ema is not None:
                ema.update(trained)
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row == MOST_SKIPPED:
                raise CheckpointError(
                    f"the gradient was not finite in {in_a_row} iterations in a row, the last of them {index + 1}: "
                    f"lower lr and give another --workdir; {checkpoint.path} keeps the state before them"
                )
        prepared.zero_grad(set_to_none=True)
        if report is not None and accelerator.is_main_process:
            lr = {"lr": config.lr * rate(config, index)}
            report(index + 1, {**figures, **lr, **({"skipped": skipped} if skipped else {})})
        done = index + 1
        if done % config.save_every == 0 or done == config.iterations:
            if accelerator.is_main_process:
                checkpoint.save(done, skipped)
            accelerator.wait_for_everyone()
        if stop_after is not None and done >= stop_after:
            return module
    if ema is not None:
        ema.copy_to(trained)
    module.eval()
    return module


def _iteration(accelerator: Accelerator, wrapped: nn.Module, seed: int, index: int) -> Iteration:
    """Seed everything of this iteration; the global generator too (dropout draws from it)."""
    mixed = (seed * 1_000_003 + index) * 4_099 + accelerator.process_index
    torch.manual_seed(mixed)
    generator = torch.Generator().manual_seed(mixed ^ 0x5DEECE66D)

    def piece(last: bool) -> AbstractContextManager[Any]:
        # Around the forward too: DDP decides there whether the backward will exchange.
        return nullcontext() if last else accelerator.no_sync(wrapped)

    return Iteration(
        index=index,
        generator=generator,
        backward=accelerator.backward,
        piece=piece,
        seed=seed,
        process=accelerator.process_index,
    )


@dataclass(frozen=True)
class _Checkpoint:
    """The file that keeps a run's state."""

    path: Path
    config: LoopConfig
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: PowerEma | None
    identity: str

    @property
    def fingerprint(self) -> str:
        """What the run must share with the run that continues it.

        Their number of iterations only where the learning rate depends on it: a run at a constant rate may be extended.
        """
        free = {"save_every"} | ({"iterations"} if self.config.decay == "constant" else set())
        fixed = {k: v for k, v in asdict(self.config).items() if k not in free}
        return repr((sorted(fixed.items()), len(self.trained), self.identity))

    def save(self, done: int, skipped: int) -> None:
        state = {
            "config": self.fingerprint,
            "done": done,
            "skipped": skipped,
            "trained": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state() if self.ema is not None else None,
        }
        with atomic_file(self.path) as temporary:
            torch.save(state, temporary)

    def resume(self) -> tuple[int, int]:
        """The iterations that are done, and how many of them were skipped."""
        if not self.path.is_file():
            return 0, 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"cannot read {self.path}: {error}; delete it to start again") from error
        if state["config"] != self.fingerprint or set(state["trained"]) != set(self.trained):
            raise CheckpointError(
                f"{self.path} belongs to a run with other settings: give another --workdir, or delete it to start again"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load(state["ema"])
        return int(state["done"]), int(state.get("skipped", 0))
