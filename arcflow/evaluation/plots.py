"""Images of an evaluation: a grid of samples, and the trajectories in two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arcflow.evaluation.compare import Evaluation
from arcflow.tiny.teacher_folder import TeacherFolder
from foundation.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = 10
_PATHS = 4


def sample_grid(evaluation: Evaluation, teacher: TeacherFolder, nfe: int, steps: int, path: Path) -> None:
    """An image: for ten prompts, teacher many steps | ArcFlow nfe | teacher's Euler nfe, from the same noise."""
    from matplotlib.figure import Figure

    columns = (("teacher", steps), ("student", nfe), ("teacher", nfe))
    titles = (f"teacher\n{steps} steps", f"ArcFlow\n{nfe} steps", f"Euler\n{nfe} steps")
    chosen = torch.linspace(0, 29, _ROWS).round().long()
    chosen = chosen[chosen < len(evaluation.prompts)]
    rows = max(1, len(chosen) // 2)
    figure = Figure(figsize=(7.6, 1.45 * rows + 0.4), layout="compressed")
    axes = figure.subplots(rows, 2 * len(columns), squeeze=False)
    for column, key in enumerate(columns):
        images = (teacher.decode(evaluation.samples[key].x[chosen]).permute(0, 2, 3, 1) + 1.0) / 2.0
        for i, row in enumerate(chosen.tolist()[: 2 * len(axes)]):
            place: Axes = axes[i // 2, (i % 2) * len(columns) + column]
            place.imshow(images[i].numpy(), interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if i < 2:
                place.set_title(titles[column], fontsize=9)
            if column == 1:
                place.set_xlabel(evaluation.prompts[row].removeprefix("picture of "), fontsize=8)
    with atomic_file(path) as temporary:
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
