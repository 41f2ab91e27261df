"""The parts: what each is called, where it is, and what it needs. Imports none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIMIT_SECONDS = 480
"""How long a part may run."""


@dataclass(frozen=True)
class Part:
    """One part. needs: what must be importable besides torch's usual environment, by import name."""

    letter: str
    module: str
    title: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What the user asked of the parts.

    smoke: the smallest sizes and few runs, to see that everything works; modes: those of part (e), None for its usual
    ones; train_seconds: how long part (g) may train; bundle: a bundle of plans for part (c), None: built there; out:
    folder for what a part makes.
    """

    smoke: bool = False
    modes: tuple[str, ...] | None = None
    train_seconds: int = 0
    bundle: Path | None = None
    out: Path = Path("out") / "gpu"


PARTS = {
    part.letter: part
    for part in (
        Part("a", "gpu.parts.machine", "what is there: device, driver, versions, and the rates it reaches at best"),
        Part("b", "gpu.parts.solver", "solver kernel: golden vectors, float64, bandwidth, against torch"),
        Part(
            "c",
            "gpu.parts.plans",
            "a TensorRT-RTX plan for sm80 on this GPU: does it load, run and agree with the CPU",
            ("msgspec", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"),
        ),
        Part("d", "gpu.parts.provider", "the tiny pipeline through ONNX Runtime's CUDA provider", ("msgspec",)),
        Part("e", "gpu.parts.flux", "the FLUX student at full size in torch: eager, compiled, FP8"),
        Part("f", "gpu.parts.graphs", "CUDA graph of solver and stub network: host overhead, gap between evaluations"),
        Part("g", "gpu.parts.distil", "distillation of the tiny recipe: throughput", ("msgspec", "diffusers", "peft")),
    )
}


def missing(part: Part) -> list[str]:
    """Those of the part's needs that cannot be found here; nothing is imported."""
    from importlib.util import find_spec

    return [name for name in part.needs if find_spec(name) is None]
