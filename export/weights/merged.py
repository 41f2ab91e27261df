"""The weights of a merged student, computed when they are read: ``W + B @ A`` in float32, some rows at a time.

No merged file exists. What is in memory is the rows asked for, and the factors of the tensor last read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import MergeError
from export.weights.files import TensorInfo, Weights, all_finite, row_chunks, torch_dtype

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pair:
    """LoRA factors that add ``scale * B @ A`` to a weight [out, in].

    a, b: keys of A [r, in] and B [out / repeat, r] in ``weights``; repeat: how many times B stands below itself;
    style: whether it is of a LoRA that the user gave a scale to, else of the adapter.
    """

    weights: Weights
    a: str
    b: str
    scale: float = 1.0
    repeat: int = 1
    style: bool = False


@dataclass(frozen=True)
class Step:
    """How one tensor of the student comes about: ``key`` of ``weights``, plus the pairs.

    name: in the student's state dict; info: of the tensor it starts from.
    """

    name: str
    weights: Weights
    key: str
    info: TensorInfo
    pairs: tuple[Pair, ...] = ()


class MergedWeights(Weights):
    """A merged student's tensors by state-dict name, each of the dtype of the tensor it starts from.

    Reading raises MergeError where a value is not finite, or is not after it was rounded to that dtype.
    """

    def __init__(self, source: Path, steps: Mapping[str, Step]) -> None:
        self.source = source
        self.steps = steps
        self._factor: tuple[Pair, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> TensorInfo:
        return self.steps[name].info

    def __iter__(self) -> Iterator[str]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor."""
        import torch

        step = self.steps[name]
        if not step.pairs:
            return _finite(step.weights.read(step.key), step.key, step.weights)
        rows = [self.read_rows(name, *bounds) for bounds in row_chunks(step.info.shape)]
        return torch.cat(rows) if rows else torch.empty(step.info.shape, dtype=torch_dtype(step.info.dtype))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one tensor."""
        step = self.steps[name]
        if not step.pairs:
            return _finite(step.weights.read_rows(step.key, start, stop), step.key, step.weights)
        rows = self.rows_float32(name, start, stop).to(torch_dtype(step.info.dtype))
        if not all_finite(rows):
            raise MergeError(
                f"merging {name} gives values that are not finite in {step.info.dtype}, its type in "
                f"{step.weights.source}; {_advice(step.pairs)}, or use the base model in bfloat16"
            )
        return rows

    def rows_float32(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows as float32, before any rounding to the tensor's own dtype."""
        step = self.steps[name]
        rows = step.weights.rows_float32(step.key, start, stop)
        for pair in step.pairs:
            rows.addmm_(self._b(pair, start, stop), self._a(pair), alpha=pair.scale)
            if not all_finite(rows):
                raise MergeError(
                    f"merging {pair.weights.source} into {name} gives values that are not finite in F32; "
                    f"{_advice([pair])}"
                )
        return rows

    def _a(self, pair: Pair) -> torch.Tensor:
        """A of a pair, kept until another one is asked for: the runs of rows of one weight share it."""
        if self._factor is None or self._factor[0] is not pair:
            self._factor = (pair, _finite(pair.weights.read(pair.a), pair.a, pair.weights).float())
        return self._factor[1]

    def _b(self, pair: Pair, start: int, stop: int) -> torch.Tensor:
        if pair.repeat == 1:
            rows = pair.weights.read_rows(pair.b, start, stop)
        else:
            rows = pair.weights.read(pair.b).repeat(pair.repeat, 1)[start:stop]
        return _finite(rows, pair.b, pair.weights).float()


def _advice(pairs: Sequence[Pair]) -> str:
    """What to do where factors that are finite themselves make values too large."""
    if any(pair.style for pair in pairs):
        return "lower the scale of the LoRA"
    return "the adapter's factors are too large: train or download it again"


def _finite(tensor: torch.Tensor, key: str, weights: Weights) -> torch.Tensor:
    if not all_finite(tensor):
        raise MergeError(f"{weights.source}: {key} has values that are not finite; train or download it again")
    return tensor
