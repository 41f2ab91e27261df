"""What ``make fullsize`` does: the parts, their steps and what each needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from foundation.errors import ArcFlowError
from foundation.measuring import memory_bytes

GB = 1_000_000_000
GIB = 1 << 30


@dataclass(frozen=True)
class Step:
    """One command.

    title: its row in the table; command: what follows the interpreter, with ``{folder}`` for the part's folder; result:
    glob of what it makes, in the part's folder; graph: likewise of the one ONNX file to count; memory_limit: bytes of
    anonymous memory that it may need; consumes: folder of weights whose bytes are given back to the disk after it.
    """

    title: str
    command: tuple[str, ...]
    result: str
    graph: str = ""
    memory_limit: int | None = None
    consumes: str = ""


@dataclass(frozen=True)
class Part:
    """Steps that work in one folder. disk, memory: bytes that it needs at most, to reject early."""

    name: str
    disk: int
    memory: int
    steps: tuple[Step, ...] = field(repr=False)


def _build(model: str, target: str, *more: str) -> tuple[str, ...]:
    """What a user types who has base and adapter in folders. A finished ONNX is used again.

    But for the gate: FP8 moves the latent of random weights by more than any image could bear.
    """
    return (
        "-m", "export.build", "--model", model, "--precision", "fp8", "--target", target,
        "--base", "{folder}/base", "--adapter", "{folder}/adapter", "--workdir", "{folder}/work",
        "--out", "{folder}/bundle", "--gate", "0.5", *more,
    )  # fmt: skip


def _synthesise(model: str) -> Step:
    make = ("-m", "benchmarks.fullsize.synthesise", model, "{folder}")
    return Step(f"{model}: synthetic base and adapter", make, "base")


def _graphs(model: str, limit: int, *networks: str) -> Iterator[Step]:
    """The graphs of networks, from base and adapter without weights."""
    folder = f"{{folder}}/{model}"
    hollow = ("-m", "benchmarks.fullsize.synthesise", model, folder, "--hollow")
    yield Step(f"{model}: hollow base and adapter", hollow, model)
    for network in networks:
        out = f"{model}-{network}.onnx"
        trace = ("-m", "benchmarks.fullsize.trace", model, network, folder, f"{{folder}}/{out}")
        yield Step(f"{model}: graph of {network}", trace, out, out, limit)


_BACKBONE = "work/backbone-*/backbone.onnx"
_FLUX = (
    _synthesise("flux"),
    Step("flux: one command to a bundle of plans for sm120", _build("flux", "sm120"), "bundle", _BACKBONE, 20 * GIB),
)
_QWEN = (
    _synthesise("qwen"),
    # Both at once would need 90 GB of disk: the base's transformer gives its room back in between.
    Step(
        "qwen: calibration, keep-high search and ONNX of the backbone", _build("qwen", "onnx", "--only", "backbone"),
        "work", _BACKBONE, 20 * GIB, "base/transformer",
    ),
    Step("qwen: the rest, to a bundle of plans for sm120", _build("qwen", "sm120"), "bundle", "", 20 * GIB),
)  # fmt: skip
_FLUX_GRAPHS = _graphs("flux", 3 * GIB, "clip", "t5", "conditioner", "backbone", "vae_decoder")
_QWEN_GRAPHS = _graphs("qwen", 4 * GIB, "text", "backbone", "vae_decoder")

PARTS = {
    "flux": Part("flux", 74 * GB, 20 * GIB, _FLUX),
    "qwen": Part("qwen", 74 * GB, 20 * GIB, _QWEN),
    "graphs": Part("graphs", 1 * GB, 5 * GIB, (*_FLUX_GRAPHS, *_QWEN_GRAPHS)),
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
