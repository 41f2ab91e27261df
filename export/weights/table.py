"""Weights that a table of their results at some noise levels stands in for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from export.weights.files import TensorInfo, Weights, matches, row_chunks

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, ROWS = "levels", "rows"
"""The table's two tensors: noise levels [n] float32, and what the layers give at each, side by side [n, columns]."""


class WithTable(Weights):
    """A student's weights, those of some layers replaced by a table.

    name: of the table in the state dict; gone: patterns (fnmatch) of the weights that leave; levels: the noise levels;
    embed: what the layers are given at the levels [n, width] float32, from a function that reads a tensor by name;
    layers: the linears by state-dict name. The rows are computed in float32 when they are first read; memory: they,
    and a run of rows of one weight.
    """

    def __init__(
        self,
        whole: Weights,
        name: str,
        gone: Sequence[str],
        levels: Sequence[float],
        embed: Callable[[Callable[[str], Tensor]], Tensor],
        layers: Sequence[str],
    ) -> None:
        self.source = whole.source
        self._whole, self._levels, self._embed, self._layers = whole, tuple(levels), embed, tuple(layers)
        columns = sum(whole[f"{layer}.bias"].shape[0] for layer in layers)
        shapes = {f"{name}.{LEVELS}": (len(levels),), f"{name}.{ROWS}": (len(levels), columns)}
        self._made = {key: TensorInfo("F32", shape, 0) for key, shape in shapes.items()}
        self._left = dict.fromkeys(key for key in whole if not matches(key, gone))
        self._rows: Tensor | None = None

    def __getitem__(self, name: str) -> TensorInfo:
        return self._made[name] if name in self._made else self._whole[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._left
        yield from self._made

    def __len__(self) -> int:
        return len(self._left) + len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._left or name in self._made

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of one tensor, of the table's or of the student's."""
        import torch

        if name not in self._made:
            return self._whole.read_rows(name, start, stop)
        if name.endswith(f".{LEVELS}"):
            return torch.tensor(self._levels[start:stop], dtype=torch.float32)
        if self._rows is None:
            self._rows = self._compute()
        return self._rows[start:stop]

    def rows_float32(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows as float32, the caller's to change."""
        if name in self._made:
            return self.read_rows(name, start, stop).clone()
        return self._whole.rows_float32(name, start, stop)

    def _compute(self) -> Tensor:
        import torch

        def read(name: str) -> Tensor:
            return self._whole.rows_float32(name, 0, self._whole[name].shape[0])

        with torch.no_grad():
            given = self._embed(read)
            columns = [
                torch.addmm(
                    self._whole.rows_float32(f"{layer}.bias", *run),
                    given,
                    self._whole.rows_float32(f"{layer}.weight", *run).T,
                )
                for layer in self._layers
                for run in row_chunks(self._whole[f"{layer}.weight"].shape)
            ]
            return torch.cat(columns, dim=1)
