"""Style LoRAs that are merged together with an adapter: read in any key style that diffusers converts, strictly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.weights import DTYPES, TensorInfo, Weights

if TYPE_CHECKING:
    import torch

_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}


class LoraTensors(Weights):
    """Converted factors in memory: ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` by name."""

    def __init__(self, source: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.source = source
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        return TensorInfo(_NAMES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape), 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        """One factor."""
        return self._tensors[name].clone()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one factor."""
        return self._tensors[name][start:stop].clone()


@dataclass(frozen=True)
class StyleLora:
    """A style LoRA, ready to be merged.

    digest: sha256 of its file; scale: what its effect is multiplied by; modules: module of the backbone -> keys of
    (A, B) in tensors.
    """

    digest: str
    scale: float
    tensors: LoraTensors
    modules: Mapping[str, tuple[str, str]]
