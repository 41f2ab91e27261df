"""What ``make fullsize`` does: the parts, their steps and what each needs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from foundation.errors import ArcFlowError
from foundation.measuring import memory_bytes

GB = 1_000_000_000
GIB = 1 << 30

_SHAPES = ("--resolutions", "1024x1024", "--batch", "1", "--text-tokens", "512")
"""What is built for: one image of 1024x1024 at a time."""


@dataclass(frozen=True)
class Step:
    """One command.

    title: its row in the table; command: what follows the interpreter, with ``{folder}`` for the part's folder; result:
    glob of what it makes, in the part's folder; graph: glob of the one ONNX file to count, below the result (or the
    result itself); memory_limit: bytes of anonymous memory that it may need.
    """

    title: str
    command: tuple[str, ...]
    result: str
    graph: str = ""
    memory_limit: int | None = None


@dataclass(frozen=True)
class Part:
    """Steps that work in one folder. disk, memory: bytes that it needs at most, to reject early."""

    name: str
    disk: int
    memory: int
    steps: tuple[Step, ...] = field(repr=False)


def _build(model: str, target: str) -> tuple[str, ...]:
    """Build the student for a target, without the networks around it. A finished ONNX is used again."""
    return (
        "-m", "export.build", "--model", model, "--precision", "fp8", "--target", target, "--only", "backbone",
        "--base", "{folder}/base", "--adapter", "{folder}/adapter", "--calibration", "{folder}/nominal.json",
        "--workdir", "{folder}/work", *_SHAPES,
    )  # fmt: skip


def _export(model: str, limit: int) -> Step:
    return Step(
        title=f"{model}: merge, FP8, ONNX of the student",
        command=_build(model, "onnx"),
        result="work",
        graph="**/backbone.onnx",
        memory_limit=limit,
    )


def _synthesise(model: str) -> Step:
    return Step(
        title=f"{model}: synthetic base and adapter",
        command=("-m", "benchmarks.fullsize.synthesise", model, "{folder}"),
        result="base",
    )


def _calibrate(model: str) -> Step:
    return Step(
        title=f"{model}: nominal scales",
        command=("-m", "benchmarks.fullsize.nominal", "{folder}", "{folder}/nominal.json"),
        result="nominal.json",
    )


def _trace(model: str, network: str) -> Step:
    return Step(
        title=f"{model}: graph of {network}",
        command=(
            "-m", "benchmarks.fullsize.trace", model, network, f"{{folder}}/{model}",
            f"{{folder}}/{model}-{network}.onnx",
        ),
        result=f"{model}-{network}.onnx",
        graph=f"{model}-{network}.onnx",
        memory_limit=3 * GIB if model == "flux" else 4 * GIB,
    )  # fmt: skip


def _hollow(model: str) -> Step:
    return Step(
        title=f"{model}: hollow base and adapter",
        command=("-m", "benchmarks.fullsize.synthesise", model, f"{{folder}}/{model}", "--hollow"),
        result=model,
    )


_PLAN = Step(
    title="flux: TensorRT-RTX plan for sm120",
    command=_build("flux", "sm120"),
    result="work/plans-*",
)

_GRAPHS = {
    "flux": ("clip", "t5", "backbone", "vae_decoder"),
    "qwen": ("text", "backbone", "vae_decoder"),
}

PARTS = {
    part.name: part
    for part in (
        Part(
            name="flux",
            disk=57 * GB,
            memory=22 * GIB,
            steps=(_synthesise("flux"), _calibrate("flux"), _export("flux", 3 * GIB), _PLAN),
        ),
        Part(
            name="qwen",
            disk=72 * GB,
            memory=5 * GIB,
            steps=(_synthesise("qwen"), _calibrate("qwen"), _export("qwen", 4 * GIB)),
        ),
        Part(
            name="graphs",
            disk=1 * GB,
            memory=5 * GIB,
            steps=tuple(
                step
                for model, networks in _GRAPHS.items()
                for step in (_hollow(model), *(_trace(model, network) for network in networks))
            ),
        ),
    )
}
"""By the name that ``--part`` takes, in the order of ``--part all``."""


class NoRoomError(ArcFlowError):
    """The machine has too little disk or memory for a part."""


def check(part: Part, folder: Path) -> None:
    """Reject a part that does not fit. folder: where it will work. Raises NoRoomError."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < part.disk:
        raise NoRoomError(
            f"part {part.name} needs {part.disk / 1e9:.0f} GB of disk, {folder} has {free / 1e9:.0f} GB free; "
            "name a larger place with --work"
        )
    available = memory_bytes("MemAvailable")
    if available is None:
        raise NoRoomError("memory is read from /proc, which this system does not have; run this on Linux")
    if available < part.memory:
        raise NoRoomError(
            f"part {part.name} needs {part.memory / GIB:.0f} GiB of memory, {available / GIB:.1f} GiB are available; "
            "end other programs, or use a larger machine"
        )
