"""Where samplers end, computed once and kept on disk: a run that is stopped goes on, another student's finds these."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foundation.files import atomic_file

_X, _SECONDS = "x", "seconds"


@dataclass(frozen=True)
class Endpoint:
    """x: packed latents [S, C], float32 on the CPU; seconds: what it took from the noise."""

    x: Tensor
    seconds: float


@dataclass(frozen=True)
class Endpoints:
    """Endpoints in a folder, each in a file that is named by all that it depends on and appears whole."""

    folder: Path

    def find(self, depends: Mapping[str, Any]) -> Endpoint | None:
        """The endpoint with these dependencies, as JSON has them; None where there is none, or it is damaged."""
        try:
            with safe_open(self._path(depends), framework="pt") as handle:
                return Endpoint(handle.get_tensor(_X), float((handle.metadata() or {})[_SECONDS]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None

    def add(self, depends: Mapping[str, Any], sample: Callable[[], Tensor], device: torch.device) -> Endpoint:
        """Sample ([1, S, C] on ``device``), keep and return it. Raises ArcFlowError where it cannot be written."""
        start = _now(device)
        x = sample()
        seconds = _now(device) - start
        found = Endpoint(x[0].float().cpu().contiguous(), seconds)
        with atomic_file(self._path(depends)) as temporary:
            save_file({_X: found.x}, temporary, metadata={_SECONDS: repr(seconds)})
        return found

    def _path(self, depends: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key[:32]}.safetensors"


def _now(device: torch.device) -> float:
    """The time once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
