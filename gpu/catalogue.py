"""The parts: what each is called, where it is, and what it needs. Imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpu.flux.modes import MODES, USUAL

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One part. needs: what must be importable besides numpy and cuda-bindings, by import name.

    modes: ways to run it, each in a process of its own; usual: those that are run unless others are asked for; limit:
    seconds that it, or each of its modes, may run.
    """

    name: str
    module: str
    title: str
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    limit: int = 300


@dataclass(frozen=True)
class Options:
    """What the user asked of the parts.

    smoke: the smallest sizes and few runs, to see that everything works; rehearse: so small that a CPU does it, and on
    a CPU where torch has no GPU; modes: those to run, None for the usual ones; train_seconds: how long ``distil`` may
    train; bundle: a bundle of plans for ``plans``, None: built there; out: folder for what a part makes.
    """

    smoke: bool = False
    rehearse: bool = False
    modes: tuple[str, ...] | None = None
    train_seconds: int = 0
    bundle: Path | None = None
    out: Path = Path("out") / "gpu"

    def pick(self, true: T, smoke: T, rehearsed: T) -> T:
        """The one that is asked for: of a run whose figures count, of a small one, of the smallest."""
        return rehearsed if self.rehearse else smoke if self.smoke else true


_BUNDLES = ("msgspec", "onnxruntime", "tokenizers")
_RTX = ("msgspec", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx")
_TRAINING = ("torch", "msgspec", "diffusers", "peft", "accelerate", "transformers")


def _part(name: str, title: str, needs: tuple[str, ...] = (), limit: int = 300) -> Part:
    modes, usual = (tuple(MODES), USUAL) if name == "flux" else ((), ())
    return Part(name, f"gpu.parts.{name}", title, needs, modes, usual, limit)


_IN_ORDER = (
    _part("scenarios", "the runtime's device: kernels, graphs, events, memory", limit=120),
    _part("machine", "the GPU as runtime and torch see it, the rates it reaches", limit=120),
    _part("graphs", "CUDA graph of solver and stub network: host time, gap", limit=120),
    _part("solver", "solver kernel: golden vectors, float64, bandwidth, torch", ("torch",)),
    _part("sanitizer", "compute-sanitizer over the scenarios: memory, races", limit=240),
    _part("plans", "a TensorRT-RTX plan for sm80 on this GPU: does it load, run and agree with the CPU", _RTX),
    _part("provider", "the tiny pipeline through ONNX Runtime's CUDA provider", _BUNDLES, 90),
    _part("flux", "the FLUX student at full size in torch: the baseline that engines must beat", ("torch",), 150),
    _part("training", "distillation of FLUX at full size: seconds an iteration, memory", _TRAINING, 200),
    _part("distil", "distillation of the tiny recipe: throughput", _TRAINING, 180),
)
PARTS: Mapping[str, Part] = {part.name: part for part in _IN_ORDER}


def missing(part: Part) -> list[str]:
    """Those of the part's needs that cannot be found here; nothing is imported."""
    from importlib.util import find_spec

    return [name for name in part.needs if find_spec(name) is None]
