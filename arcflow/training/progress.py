"""What a person sees of a training run: a bar with loss and time left, and a TensorBoard log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from arcflow.training.loop import Reporter

LOSS = "loss"
_SMOOTHING = 0.98


@contextmanager
def reporting(name: str, total: int, logdir: Path | None = None, every: int = 10) -> Iterator[Reporter]:
    """Yield a reporter for :func:`arcflow.training.loop.fit`.

    Draws a progress bar on standard error (one line every 100 iterations where that is no terminal) and, where
    ``logdir`` is given, writes every figure to TensorBoard each ``every`` iterations. The loss is shown smoothed over
    some 50 iterations, every other figure as it is.
    """
    from torch.utils.tensorboard import SummaryWriter

    console = Console(stderr=True)
    writer = SummaryWriter(str(logdir)) if logdir is not None else None
    smooth = math.nan
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, figures="")

        def report(done: int, figures: dict[str, float]) -> None:
            nonlocal smooth
            loss = figures.get(LOSS, math.nan)
            # A loss that is not finite is shown, and forgotten.
            smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss if math.isfinite(smooth) else loss
            shown = "  ".join(f"{k} {smooth if k == LOSS else v:.4g}" for k, v in figures.items())
            bar.update(task, completed=done, figures=shown)
            if not console.is_terminal and (done % 100 == 0 or done == total):
                left = bar.tasks[0].time_remaining
                console.print(f"{name} {done}/{total}  {shown}  {'' if left is None else f'{left:.0f} s left'}")
            if writer is not None and done % every == 0:
                for key, value in figures.items():
                    writer.add_scalar(f"{name}/{key}", value, done)

        try:
            yield report
        finally:
            if writer is not None:
                writer.close()
