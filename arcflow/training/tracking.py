"""Where a run's figures and images are kept: TensorBoard's files, and Weights & Biases where it was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcflow.errors import TrackingError
from arcflow.training.loop import Reporter

IMAGE = "look"
"""Name of a look's grid."""

_RUN = "wandb.id"


@contextmanager
def tensorboard(name: str, folder: Path) -> Iterator[Reporter]:
    """Keep figures and grids as ``name/...`` in files of TensorBoard under ``folder``."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def report(done: int, figures: dict[str, float], grid: NDArray[np.uint8] | None = None) -> None:
        for key, value in figures.items():
            writer.add_scalar(f"{name}/{key}", value, done)
        if grid is not None:
            writer.add_image(f"{name}/{IMAGE}", grid, done, dataformats="HWC")
            writer.flush()

    try:
        yield report
    finally:
        writer.close()


@dataclass(frozen=True)
class WandB:
    """A project of Weights & Biases that a run is sent to, under a name, with its settings."""

    project: str
    name: str
    settings: Mapping[str, Any]


def check_wandb() -> None:
    """Raises TrackingError where the package is not installed. A folder ``wandb``, which it leaves, is no package."""
    try:
        version("wandb")
    except PackageNotFoundError as error:
        raise TrackingError(
            "--wandb needs the package wandb, which is not installed: `pip install wandb`, or leave out --wandb "
            "(TensorBoard's files are always written)"
        ) from error


@contextmanager
def wandb_run(target: WandB, folder: Path) -> Iterator[Reporter]:
    """Send figures and grids to Weights & Biases; a run that is continued is one run there.

    folder: keeps the run's id and its files. Whether it is online, and who is logged in, is its own affair (``wandb
    login``, ``WANDB_MODE=offline``). Raises TrackingError.
    """
    check_wandb()
    import wandb

    known = folder / _RUN
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=target.project,
            name=target.name,
            config=dict(target.settings),
            dir=folder,
            id=known.read_text(encoding="utf-8").strip() if known.is_file() else None,
            resume="allow",
            settings=wandb.Settings(console="off"),  # It would take the progress bar for output to keep.
        )
    except wandb.errors.Error as error:
        raise TrackingError(
            f"Weights & Biases cannot be used: {error}; run `wandb login`, set WANDB_MODE=offline, or leave out --wandb"
        ) from error
    known.write_text(run.id + "\n", encoding="utf-8")

    def report(done: int, figures: dict[str, float], grid: NDArray[np.uint8] | None = None) -> None:
        image = {} if grid is None else {IMAGE: wandb.Image(grid, caption="teacher | student")}
        if done >= run.step:  # What was sent before the run was killed is the same.
            run.log({**figures, **image}, step=done)

    code = 1
    try:
        yield report
        code = 0
    finally:
        run.finish(exit_code=code)
