"""What a person sees of a training run: a bar with figures and the time left; logs for TensorBoard and W&B."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from arcflow.training.loop import Reporter
from arcflow.training.tracking import WandB, tensorboard, wandb_run

LOSS = "loss"
_SMOOTHING = 0.98
_MEASURED = 600.0
"""Seconds that the time left is told from: several iterations of a large model."""


class _Bar(Progress):
    """A bar with figures under it, so that a narrow terminal hides neither count nor time left."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.figures)


@contextmanager
def reporting(
    name: str, total: int, logdir: Path | None = None, every: int = 10, wandb: WandB | None = None
) -> Iterator[Reporter]:
    """Yield a reporter for :func:`arcflow.training.loop.fit`.

    Draws a progress bar on standard error (where that is no terminal a line every 100 iterations, and for each look)
    and, where ``logdir`` is given, logs every figure each ``every`` iterations, and each look, for TensorBoard and for
    W&B where that is asked for. The bar shows the loss smoothed over some 50 iterations, every other figure as it was
    last told. Raises TrackingError where W&B cannot be used.
    """
    console = Console(stderr=True)
    smooth = math.nan
    last: dict[str, float] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ExitStack() as stack:
        trackers: list[Reporter] = []
        if logdir is not None:
            trackers.append(stack.enter_context(tensorboard(name, logdir)))
        if logdir is not None and wandb is not None:
            trackers.append(stack.enter_context(wandb_run(wandb, logdir)))
        bar = stack.enter_context(
            _Bar(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=_MEASURED)
        )
        task = bar.add_task(name, total=total)

        def report(done: int, figures: dict[str, float], grid: NDArray[np.uint8] | None = None) -> None:
            nonlocal smooth
            if not last:  # A run that is continued: what was done before tells nothing of the speed.
                bar.reset(task, completed=done - 1)
            last.update(figures)
            loss = figures.get(LOSS, math.nan)
            # A loss that is not finite is shown, and forgotten.
            smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss if math.isfinite(smooth) else loss
            shown = bar.figures = "  ".join(f"{k} {smooth if k == LOSS else v:.4g}" for k, v in last.items())
            bar.update(task, completed=done)
            seen = grid is not None or done == total
            if not console.is_terminal and (done % 100 == 0 or seen):
                left = bar.tasks[0].time_remaining
                ending = "" if left is None else f"  {left:.0f} s left"
                console.print(f"{name} {done}/{total}  {shown}{ending}", soft_wrap=True)
            if done % every == 0 or seen:
                for tracker in trackers:
                    tracker(done, figures, grid)

        yield report
