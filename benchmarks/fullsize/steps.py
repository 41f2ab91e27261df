"""What ``make fullsize`` does: the parts, their steps and what each needs, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

GB = 1_000_000_000
GIB = 1 << 30

_SHAPES = ("--resolutions", "1024x1024", "--batch", "1", "--text-tokens", "512")
"""What the plan serves: one picture of 1024x1024 at a time."""


@dataclass(frozen=True)
class Step:
    """One command.

    title: its row in the table; command: what follows the interpreter, with ``{folder}`` for the part's folder; result:
    file or folder that it makes, in the part's folder; graph: glob of the ONNX files to count, below the result;
    memory_limit: bytes of anonymous memory that it may need; remove: what is not needed any more after it.
    """

    title: str
    command: tuple[str, ...]
    result: str
    graph: str = ""
    memory_limit: int | None = None
    remove: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Steps that work in one folder. disk, memory: bytes that it needs at most, to refuse early."""

    name: str
    disk: int
    memory: int
    steps: tuple[Step, ...] = field(repr=False)


def _export(model: str, limit: int) -> Step:
    """Merge, quantise and export the student, without the networks around it."""
    return Step(
        title=f"{model}: merge, FP8, ONNX of the student",
        command=(
            "-m", "export.build", "--model", model, "--precision", "fp8", "--target", "onnx", "--only", "backbone",
            "--base", "{folder}/base", "--adapter", "{folder}/adapter", "--calibration", "{folder}/nominal.json",
            "--workdir", "{folder}/work", "--out", f"{{folder}}/{model}-fp8-onnx",
        ),
        result=f"{model}-fp8-onnx",
        graph="**/backbone.onnx",
        memory_limit=limit,
        remove=("base", "adapter", "work"),
    )  # fmt: skip


def _synthesise(model: str) -> Step:
    return Step(
        title=f"{model}: synthetic base and adapter",
        command=("-m", "benchmarks.fullsize.synthesise", model, "{folder}"),
        result="base",
    )


def _calibrate(model: str) -> Step:
    return Step(
        title=f"{model}: nominal scales",
        command=("-m", "benchmarks.fullsize.nominal", model, "{folder}", "{folder}/nominal.json"),
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
    command=(
        "-m", "export.engine", "{folder}/flux-fp8-onnx", "--target", "sm120", *_SHAPES,
        "--out", "{folder}/flux-fp8-sm120",
    ),
    result="flux-fp8-sm120",
)  # fmt: skip

_GRAPHS = {
    "flux": ("clip", "t5", "backbone", "vae_decoder"),
    "qwen": ("text", "backbone", "vae_decoder"),
}

PARTS = {
    part.name: part
    for part in (
        Part(
            name="flux",
            disk=40 * GB,
            memory=16 * GIB,
            steps=(_synthesise("flux"), _calibrate("flux"), _export("flux", 3 * GIB), _PLAN),
        ),
        Part(
            name="qwen",
            disk=66 * GB,
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
