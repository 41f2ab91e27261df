"""A run's state on disk: written whole or not at all, by all processes together, and read by any number of them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from arcflow.errors import CheckpointError
from arcflow.recipe import Settled
from arcflow.training.ema import PowerEma

_RUN = "run.json"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Progress:
    """done: iterations that are over; skipped: how many of them changed nothing."""

    done: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Checkpoints:
    """The newest state of a run, ``folder/ITERATION``: ``run.json`` and torch.distributed.checkpoint's files.

    fingerprint: what the run must share with the run that continues it; trained: parameters by name, sharded or not;
    precision: what its networks compute in, for :func:`precision_of`.
    """

    folder: Path
    fingerprint: str
    trained: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: PowerEma | None
    accelerator: Accelerator
    precision: Settled = "fp32"

    def save(self, progress: Progress) -> None:
        """Write the state and let go of the one before. All processes must call it.

        Moments in 8 bits are written in float32, and rounded again here as a run that is continued will: both then go
        on alike.
        """
        partial = self.folder / _PARTIAL
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        state = self._state()
        with _quiet():
            save(state, checkpoint_id=partial)
        self._take(state)
        if self.accelerator.is_main_process:
            run = {
                "settings": self.fingerprint,
                "precision": self.precision,
                "done": progress.done,
                "skipped": progress.skipped,
                "averaged": self.ema.updates if self.ema is not None else 0,
            }
            (partial / _RUN).write_text(json.dumps(run, indent=2) + "\n")
            whole = self.folder / str(progress.done)
            shutil.rmtree(whole, ignore_errors=True)
            partial.replace(whole)
            for path in _whole(self.folder):
                if path != whole:
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def resume(self) -> Progress:
        """Take over the newest state, where there is one. All processes must call it.

        Raises CheckpointError where it cannot be read, or belongs to a run with another fingerprint.
        """
        found = _whole(self.folder)
        if not found:
            return Progress()
        newest = found[-1]
        try:
            run = json.loads((newest / _RUN).read_text())
            settings, averaged = str(run["settings"]), int(run["averaged"])
            progress = Progress(int(run["done"]), int(run["skipped"]))
            names = set(FileSystemReader(newest).read_metadata().state_dict_metadata)
        except Exception as error:
            raise _unreadable(newest, error) from error
        self._make_moments()
        state = self._state()
        if settings != self.fingerprint or names != set(_flat(state)):
            raise CheckpointError(
                f"{newest} belongs to a run with other settings: give another --workdir, or delete it to start again"
            )
        try:
            with _quiet():
                load(state, checkpoint_id=newest)
        except CheckpointException as error:
            raise _unreadable(newest, *(fault for fault, _ in error.failures.values())) from error
        self._take(state)
        for moments in self._moments().values():
            moments["step"].fill_(progress.done - progress.skipped)
        if self.ema is not None:
            self.ema.updates = averaged
        return progress

    def _moments(self) -> dict[str, dict[str, Any]]:
        return {name: self.optimizer.state[p] for name, p in self.trained.items() if p in self.optimizer.state}

    def _make_moments(self) -> None:
        """Have the optimiser make its moments, by a step that changes nothing."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            set_rate(group, 0.0)
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            set_rate(group, float(rate))

    def _state(self) -> dict[str, dict[str, Tensor]]:
        """What is written: the run's own tensors, or copies of such as are not stored as numbers."""
        state: dict[str, dict[str, Tensor]] = {"trained": {n: p.detach() for n, p in self.trained.items()}}
        for name, moments in self._moments().items():
            for kind, value in moments.items():
                if kind != "step":
                    state.setdefault(kind, {})[name] = _numbers(value)
        if self.ema is not None:
            state["average"] = dict(zip(self.trained, self.ema.averages, strict=True))
        return state

    @torch.no_grad()
    def _take(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put copies back where they were made of."""
        for name, moments in self._moments().items():
            for kind, value in moments.items():
                if kind != "step" and state[kind][name] is not value:
                    _local(value).copy_(_local(state[kind][name]))


def precision_of(folder: Path) -> Settled | None:
    """What the run computes in whose states lie in ``folder``, None where there is none. Raises CheckpointError."""
    found = _whole(folder)
    if not found:
        return None
    try:
        precision: Settled = json.loads((found[-1] / _RUN).read_text())["precision"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(found[-1], error) from error
    return precision


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a parameter group's learning rate, a number or (for compiled optimisers) a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _whole(folder: Path) -> list[Path]:
    """Folders of whole states, the newest last."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda path: int(path.name))


def _local(tensor: Tensor) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _numbers(tensor: Tensor) -> Tensor:
    """The tensor, or of one that is stored in 8 bits its values in float32."""
    local = _local(tensor)
    if not hasattr(local, "dequantize") or type(local) is Tensor:
        return tensor
    values: Tensor = local.dequantize()
    if not isinstance(tensor, DTensor):
        return values
    return DTensor.from_local(
        values, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def _flat(state: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    return (f"{kind}.{name}" for kind, tensors in state.items() for name in tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a single process saves alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unreadable(path: Path, fault: BaseException, *_: BaseException) -> CheckpointError:
    return CheckpointError(f"cannot read {path}: {str(fault) or type(fault).__name__}; delete it to start again")
