"""Images of an evaluation: a grid of samples, and the trajectories in two dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcflow.evaluation.compare import Evaluation
from arcflow.tiny.teacher_folder import TeacherFolder
from foundation.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = 10
_PATHS = 4
_LABEL = 100


def sample_grid(evaluation: Evaluation, teacher: TeacherFolder, nfe: int, steps: int, path: Path) -> None:
    """An image: for ten prompts, teacher many steps | ArcFlow nfe | teacher's Euler nfe, from the same noise."""
    chosen = torch.linspace(0, 29, _ROWS).round().long()
    chosen = chosen[chosen < len(evaluation.prompts)]

    def images(kind: str, count: int) -> list[NDArray[np.uint8]]:
        return [pixels(image) for image in teacher.decode(evaluation.samples[kind, count].x[chosen])]

    columns = {title: images(*key) for title, key in titles(nfe, steps).items()}
    labels = [evaluation.prompts[row].removeprefix("picture of ") for row in chosen.tolist()]
    image_grid(columns, labels, path, blocks=2, cell=(7.6 / 6, 1.45))


def titles(nfe: int, steps: int) -> dict[str, tuple[str, int]]:
    """The columns of a grid, and which sampler each shows: (kind, evaluations)."""
    return {
        f"teacher\n{steps} steps": ("teacher", steps),
        f"ArcFlow\n{nfe} steps": ("student", nfe),
        f"Euler\n{nfe} steps": ("teacher", nfe),
    }


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """An image [3, H, W] in [-1, 1] as uint8 [H, W, 3]."""
    values: NDArray[np.uint8] = (127.5 * (image.float().clamp(-1, 1) + 1)).round().byte().permute(1, 2, 0).cpu().numpy()
    return values


def image_grid(
    columns: Mapping[str, Sequence[NDArray[np.uint8]]],
    labels: Sequence[str],
    path: Path,
    *,
    blocks: int = 1,
    cell: tuple[float, float] = (3.0, 3.2),
) -> None:
    """Write a figure: a row of images for each label, a column for each title.

    blocks: how many rows stand beside each other; rows that do not fill a line are left out, unless there is none
    else. cell: width and height of an image in inches.
    """
    from matplotlib.figure import Figure

    rows = max(1, len(labels) // blocks)
    figure = Figure(figsize=(cell[0] * blocks * len(columns), cell[1] * rows + 0.4), layout="compressed")
    axes = figure.subplots(rows, blocks * len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        for i, label in enumerate(labels[: blocks * rows]):
            place: Axes = axes[i // blocks, (i % blocks) * len(columns) + column]
            place.imshow(images[i], interpolation="nearest" if images[i].shape[0] < 64 else "antialiased")
            place.set_xticks([])
            place.set_yticks([])
            if i < blocks:
                place.set_title(title, fontsize=9)
            if column == len(columns) // 2:
                place.set_xlabel(shorten(label, _LABEL), fontsize=8)
    with atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # A Chinese prompt, where no font has it.
        figure.savefig(temporary, dpi=110)


def trajectory_plot(evaluation: Evaluation, nfe: int, path: Path) -> None:
    """Trajectories of four seeds in the plane that shows the teacher's bend: its curve, the student's arcs, chords.

    Horizontal: along the teacher's straight line from noise to image; vertical: the direction in which the teacher's
    curve departs from it the most. Both in units of that line's length.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * _PATHS, 3.2), layout="constrained")
    axes = figure.subplots(1, _PATHS, squeeze=False)[0]
    count = len(evaluation.prompts)
    for place, seed in zip(axes, torch.linspace(0, count - 1, _PATHS).long().tolist(), strict=True):
        levels = sorted(evaluation.reference.path, reverse=True)
        curve = torch.stack([evaluation.reference.path[s][seed].flatten() for s in levels])
        origin, basis, length = _plane(curve)
        for kind, style, label in (
            ("teacher", "k-", "teacher"),
            ("student", "C1-", "ArcFlow"),
            ("linear", "C0--", "linear"),
        ):
            states = evaluation.reference.path if kind == "teacher" else None
            if kind != "teacher" and (kind, nfe) in evaluation.samples:
                states = evaluation.samples[kind, nfe].path
            if states is None:
                continue
            points = torch.stack([states[s][seed].flatten() for s in sorted(states, reverse=True)])
            plane = (points - origin) @ basis.T / length
            place.plot(plane[:, 0].numpy(), plane[:, 1].numpy(), style, label=label, lw=1.6)
        place.set_title(evaluation.prompts[seed].removeprefix("picture of "), fontsize=9)
        place.set_xlabel("along noise to image")
    axes[0].set_ylabel("departure from the straight line")
    axes[0].legend(fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _plane(curve: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Origin, two orthonormal rows [2, D] and the length scale of the plane that shows a curve [N, D]."""
    chord = curve[-1] - curve[0]
    length = chord.norm()
    along = chord / length
    rest = curve - curve[0]
    rest = rest - (rest @ along)[:, None] * along
    across = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    return curve[0], torch.stack([along, across]), length
