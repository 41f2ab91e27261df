"""A backbone's weights from their files to where they belong, one tensor at a time, whole or this process's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from arcflow.errors import BackboneError
from arcflow.sources.base import AGAIN, BACKBONE, Base, weight_files
from arcflow.sources.fp8 import quantise_rows
from arcflow.sources.stored import Fp8Linear, as_frozen

_WRAPPED = "base_layer."
"""What peft puts into the name of a linear that carries LoRA."""


def open_backbone(base: Base, frozen: str, device: torch.device) -> Any:
    """The base's backbone on ``device``, frozen, in evaluation mode. Raises BackboneError: see :func:`fill`."""
    backbone = empty_backbone(base, frozen)
    fill(backbone, base, device)
    return backbone


def empty_backbone(base: Base, frozen: str) -> Any:
    """The base's backbone, frozen, in evaluation mode, its parameters on torch's meta device.

    frozen: what they are kept in, as recipes name it: "fp32", "bf16" or "fp8".
    """
    with init_empty_weights():
        backbone = base.architecture.build_backbone(base.config)
    return as_frozen(backbone.requires_grad_(False).eval(), frozen)


def fill(backbone: nn.Module, base: Base, device: torch.device, parts: Sequence[str] = ("",)) -> None:
    """Give every parameter on the meta device its value, on ``device``, in the parameter's dtype.

    backbone: of :func:`empty_backbone`; LoRA may have been injected, and its parameters be sharded by rows: then only
    this process's rows are read. parts: names that those of the parameters must start with. Raises BackboneError where
    a file cannot be read or the device has no room.
    """
    try:
        with _Files(base.folder / BACKBONE) as files:
            for owner, name, key in list(_missing(backbone, tuple(parts))):
                for one, value in _values(owner, name, files, key, device).items():
                    owner._parameters[one] = nn.Parameter(value, requires_grad=False)
    except torch.OutOfMemoryError as error:
        raise BackboneError(
            f"{device} has no room for the backbone of {base.folder}: {error}; free some, or give another --device"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise BackboneError(f"cannot read the backbone of {base.folder}: {error}; {AGAIN}") from error


def _missing(backbone: nn.Module, parts: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, name in it, name in the files) of each parameter on the meta device."""
    for prefix, owner in backbone.named_modules():
        for name, parameter in owner._parameters.items():
            key = f"{prefix}.{name}".replace(_WRAPPED, "").removeprefix(".")
            stored = isinstance(owner, Fp8Linear) and name == owner.SCALE  # Comes with the weight.
            if parameter is not None and parameter.is_meta and key.startswith(parts) and not stored:
                yield owner, name, key


def _values(owner: nn.Module, name: str, files: _Files, key: str, device: torch.device) -> dict[str, Tensor]:
    """Values of a parameter of ``owner``, and of what is stored with it."""
    parameter: Any = owner._parameters[name]
    rows = files.rows(key, *_own_rows(parameter)).to(device)
    if isinstance(owner, Fp8Linear) and name == "weight":
        values = dict(zip((name, owner.SCALE), quantise_rows(rows, key), strict=True))
    else:
        values = {name: rows.to(parameter.dtype)}
    return {one: _as_shard(value, owner._parameters[one]) for one, value in values.items()}


def _own_rows(parameter: Any) -> tuple[int, int | None]:
    """The first of this process's rows, and the one behind its last."""
    if not isinstance(parameter, DTensor):
        return 0, None
    most = -(-parameter.shape[0] // parameter.device_mesh.size())  # Rows of a process, of all but the last ones.
    start = parameter.device_mesh.get_local_rank() * most
    return start, start + most


def _as_shard(rows: Tensor, parameter: Any) -> Tensor:
    """Rows as this process's part of a parameter."""
    if not isinstance(parameter, DTensor):
        return rows
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements,
        run_check=False, shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


class _Files:
    """The files of a backbone's weights, opened when first asked."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._handles: Mapping[str, Any] = {}
        self._folder = folder

    def __enter__(self) -> _Files:
        handles: dict[str, Any] = {}
        for name in weight_files(self._folder):
            handle = self._stack.enter_context(safe_open(self._folder / name, framework="pt"))
            handles |= dict.fromkeys(handle.keys(), handle)
        self._handles = handles
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, key: str, start: int, stop: int | None) -> Tensor:
        """Rows of a tensor, in the file's dtype."""
        handle = self._handles[key]
        found: Tensor = handle.get_tensor(key) if stop is None else handle.get_slice(key)[start:stop]
        return found
