"""The backbone of a Qwen-Image student, whose modulation depends on the noise level alone and is looked up.

A third of the parameters leaves the network for a table of all noise levels that its schedules can ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcflow.architectures import qwen
from arcflow.schedule import sigmas
from export.networks.base import Network, Sizes, describe
from export.networks.qwen_student import Student, qwen_student_network
from export.networks.student import Columns, Given
from export.weights.merge import MergedStudent
from export.weights.table import WithTable

_TABLE = "modulation_table"

_GONE = ("time_text_embed.*", "transformer_blocks.*.img_mod.*", "transformer_blocks.*.txt_mod.*", "norm_out.linear.*")
"""The weights that the table stands in for (fnmatch)."""


class _Table(nn.Module):
    """One row of modulation a noise level; it is made of the levels in float32 and given the nearest row."""

    def __init__(self, count: int, columns: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.empty(count))
        self.rows = nn.Parameter(torch.empty(count, columns))

    def forward(self, timestep: Tensor) -> Tensor:
        """Noise levels [batch] float32 -> their rows [batch, columns]."""
        return self.rows.index_select(0, (timestep[:, None] - self.levels).abs().argmin(dim=1))


def _modulated(network: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linears that make the modulation, by state-dict name, in the order of the table's columns."""
    for index, block in enumerate(network.transformer_blocks):
        for name in ("img_mod", "txt_mod"):
            yield f"transformer_blocks.{index}.{name}.1", getattr(block, name)[1]
    yield "norm_out.linear", network.norm_out.linear


def _backbone(network: Any, count: int, dtype: torch.dtype) -> Student:
    """The student with its modulation looked up in a table of ``count`` noise levels."""
    start = 0
    for name, linear in list(_modulated(network)):
        stop = start + linear.out_features
        columns, start = Columns(start, stop), stop
        owner, _, attribute = name.removesuffix(".1").rpartition(".")
        setattr(network.get_submodule(owner), attribute, columns)
    network.norm_out.silu, network.time_text_embed = nn.Identity(), Given(0)  # Rows come as the noise level.
    table = _Table(count, start)
    network.add_module(_TABLE, table)
    student = Student(network, table.forward, dtype)
    table.levels = nn.Parameter(torch.empty(count, dtype=torch.float32))  # Levels are told apart in float32.
    return student


def levels_of(student: MergedStudent, max_nfe: int) -> tuple[float, ...]:
    """The noise levels, falling, that a student is fed by any schedule of up to ``max_nfe`` evaluations."""
    policy = student.policy
    found = {
        sigma for nfe in range(1, max_nfe + 1) for sigma in sigmas(nfe, policy.shift, policy.final_step_ratio)[:-1]
    }
    fed = qwen.as_trained(torch.tensor(sorted(found, reverse=True), dtype=torch.float32), policy.conditioning_dtype)
    return tuple(dict.fromkeys(fed.tolist()))


def qwen_backbone_network(folder: Path, student: MergedStudent, max_nfe: int) -> Network:
    """The network of a merged Qwen-Image student, for schedules of up to ``max_nfe`` evaluations.

    Its ports are those of :func:`export.networks.qwen_student.qwen_student_network`; a ``timestep`` that is none of
    :func:`levels_of` is taken for the nearest of them.
    """
    from arcflow.students import build_student

    whole = qwen_student_network(folder, student)
    config, levels = describe(student.config), levels_of(student, max_nfe)
    with torch.device("meta"):
        empty: Any = build_student(config, student.modes, qwen.NAME)
    layers = [name for name, _ in _modulated(empty)]

    def embed(read: Callable[[str], Tensor]) -> Tensor:
        module = empty.time_text_embed.to_empty(device="cpu")
        module.load_state_dict({name: read(f"time_text_embed.{name}") for name in module.state_dict()})
        return nn.functional.silu(module(torch.tensor(levels), torch.empty(0)))

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = whole.examples(sizes, generator)
        chosen = torch.randint(len(levels), (sizes["batch"],), generator=generator)
        return inputs | {"timestep": torch.tensor(levels)[chosen]}

    return replace(
        whole,
        build=lambda dtype: _backbone(build_student(config, student.modes, qwen.NAME), len(levels), dtype),
        weights=WithTable(student.weights, _TABLE, _GONE, levels, embed, layers),
        examples=examples,
        levels=levels,
    )
