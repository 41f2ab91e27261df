"""Synthetic models: random, non-repeating bfloat16 weights of true shapes, written in constant memory.

``python -m benchmarks.fullsize.synthesise flux|qwen DIR`` writes DIR/base, a diffusers folder, and DIR/adapter, an
adapter of rank 256 in the released format. Tensors that no network of a bundle has (Qwen2.5-VL's eyes, the VAE's
encoder) are holes in their files, which take no room; with ``--hollow`` all are.

Every value is a quantile of the normal distribution that 16 random bits choose: all values are finite, no two tensors
and no two rows repeat (an engine builder would store equal tensors once), and matrices keep the scale of their input.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np

from benchmarks.fullsize.shapes import RANK, Model, Shapes, adapter_shapes, component_shapes, published
from benchmarks.fullsize.tokenizers import write_tokenizers
from export.weights.layout import Entry, layout
from foundation.cli import ArgumentParser, run

SHARD = {"flux": 10_000_000_000, "qwen": 5_000_000_000}
"""Bytes that a shard of the published repositories holds at most."""
WEIGHTS = "diffusion_pytorch_model"

_BLOCK = 1 << 16
"""Elements made at a time: the random bits, the table and the result stay in the processor's cache."""
_BUFFER = 1 << 22
_TORCH = {"format": "pt"}
_POLICY = {"policy_config": json.dumps({"type": "ArcFlow"})}
"""Metadata of the published adapters."""
_UNREAD = ("visual.", "lm_head.", "encoder.", "quant_conv.")
"""Beginnings of names that no network of a bundle has, in the files of Qwen2.5-VL and of VAEs."""
_LORA_SHARE = 0.3
"""Standard deviation of B @ A relative to that of the weight it is added to."""

Report = Callable[[str, int, int], None]
"""Told (file, bytes written, bytes in all)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write one model. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python -m benchmarks.fullsize.synthesise", description="Write a synthetic model.")
    add = parser.add_argument
    add("model", choices=sorted(SHARD))
    add("folder", type=Path, help="where base and adapter are written")
    add("--seed", type=int, default=0)
    add("--hollow", action="store_true", help="fill nothing: enough to trace graphs, takes no room")
    arguments = parser.parse_args(argv)

    def report(file: str, done: int, total: int) -> None:
        print(f"{file}: {done / 1e9:.1f} of {total / 1e9:.1f} GB", flush=True)

    model, folder = published(arguments.model), arguments.folder
    if arguments.hollow:
        write_hollow_model(model, folder)
    else:
        synthesise(model, folder, arguments.seed, report=report)
    return 0


def synthesise(
    model: Model,
    folder: Path,
    seed: int = 0,
    shard: int | None = None,
    rank: int = RANK,
    report: Report | None = None,
) -> None:
    """Write ``folder``/base and ``folder``/adapter of that model.

    shard: bytes of tensors that a transformer's file holds at most (default: as published). Files that are there are
    overwritten.
    """
    _write_configurations(model, folder)
    base, adapter = folder / "base", folder / "adapter"
    transformer = component_shapes(model, "transformer")
    write_shards(base / "transformer", transformer, seed, SHARD[model.name] if shard is None else shard, report)
    write_file(adapter / f"{WEIGHTS}.safetensors", adapter_shapes(model, transformer, rank), seed + 1, _POLICY, report)
    for component in model.components:
        if component != "transformer":
            shapes = component_shapes(model, component)
            unread = [name for name in shapes if component in ("vae", "text_encoder") and name.startswith(_UNREAD)]
            write_file(_weights_file(base, component), shapes, seed, _TORCH, report, unread)


def write_hollow_model(model: Model, folder: Path, rank: int = RANK) -> None:
    """Write ``folder``/base and ``folder``/adapter of that model with no weight filled in."""
    _write_configurations(model, folder)
    _write_hollow_components(model, folder / "base")
    shapes = adapter_shapes(model, component_shapes(model, "transformer"), rank)
    write_hollow(folder / "adapter" / f"{WEIGHTS}.safetensors", shapes, _POLICY)


def _write_configurations(model: Model, folder: Path) -> None:
    for path, content in model.files.items():
        target = folder / path if path.startswith("adapter/") else folder / "base" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=2) + "\n")
    write_tokenizers(model, folder / "base")


def _write_hollow_components(model: Model, base: Path) -> None:
    for component in model.components:
        write_hollow(_weights_file(base, component), component_shapes(model, component), _TORCH)


def _weights_file(base: Path, component: str) -> Path:
    return base / component / f"{WEIGHTS if component in ('vae', 'transformer') else 'model'}.safetensors"


def bytes_of(shapes: Shapes) -> int:
    """Bytes of bfloat16 tensors of these shapes."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def write_shards(folder: Path, shapes: Shapes, seed: int, limit: int, report: Report | None = None) -> None:
    """Fill ``folder`` with shards of at most ``limit`` bytes each, in order, and their index."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and bytes_of({**shards[-1], name: shape}) > limit:
            shards.append({})
        shards[-1][name] = shape
    files = [f"{WEIGHTS}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, part in zip(files, shards, strict=True):
        write_file(folder / file, part, seed, _TORCH, report)
    weight_map = {name: file for file, part in zip(files, shards, strict=True) for name in part}
    index = {"metadata": {"total_size": bytes_of(shapes)}, "weight_map": weight_map}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(
    path: Path,
    shapes: Shapes,
    seed: int,
    metadata: Mapping[str, str],
    report: Report | None = None,
    unread: Sequence[str] = (),
) -> None:
    """Write one safetensors file of random bfloat16 tensors. The same seed and name give the same tensor.

    unread: names of tensors that are holes.
    """
    total, done = bytes_of(shapes), 0
    with path.open("wb", buffering=_BUFFER) as stream:
        stream.write(_header(shapes, metadata))
        for name, shape in shapes.items():
            if name in unread:
                stream.seek(2 * math.prod(shape), os.SEEK_CUR)
            else:
                for block in random_blocks(name, shape, seed):
                    stream.write(block.data)
            before, done = done, done + 2 * math.prod(shape)
            if report is not None and (done * 10 // total > before * 10 // total):
                report(path.name, done, total)
        stream.truncate(stream.tell())


def hollow(folder: Path) -> None:
    """Give the room of a folder's weights back to the disk: their files keep size, header and time of change."""
    for path in folder.glob("*.safetensors"):
        status = path.stat()
        with path.open("rb") as stream:
            header = 8 + int.from_bytes(stream.read(8), "little")
        os.truncate(path, header)
        os.truncate(path, status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_hollow(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of the true header and size whose tensors are one hole (zeros that take no room)."""
    header = _header(shapes, metadata)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + bytes_of(shapes))


def random_blocks(name: str, shape: Sequence[int], seed: int) -> Iterator[np.ndarray]:
    """The tensor's elements in order, as the bits of bfloat16 (uint16), in blocks of at most 65,536."""
    mean, std = _moments(name, shape)
    table = _table(mean, std)
    bits = np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode()), len(name)]))
    out = np.empty(_BLOCK, np.uint16)
    left = math.prod(shape)
    while left:
        count = min(left, _BLOCK)
        choice = bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
        yield np.take(table, choice, out=out[:count], mode="clip")  # "clip" is the mode that writes into out directly.
        left -= count


def _moments(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """(mean, standard deviation) of a tensor's elements."""
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) < 2:
        return 1.0, 0.02  # The gain of a norm.
    std = 1 / math.sqrt(math.prod(shape[1:]))
    return 0.0, _LORA_SHARE * std if name.endswith("lora_B.weight") else std


@lru_cache(maxsize=32)
def _table(mean: float, std: float) -> np.ndarray:
    """65,536 equally likely values of N(mean, std) as the bits of bfloat16."""
    values = (mean + std * _quantiles()).astype(np.float32).view(np.uint32)
    rounded = values + 0x7FFF + ((values >> 16) & 1)  # To the nearest, ties to even; no value is near overflow.
    return (rounded >> 16).astype(np.uint16)


@lru_cache(maxsize=1)
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    half = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(32768)])
    return np.concatenate([half, -half[::-1]])


def _header(shapes: Shapes, metadata: Mapping[str, str]) -> bytes:
    return layout([Entry(name, "BF16", shape) for name, shape in shapes.items()], metadata).header


if __name__ == "__main__":
    sys.exit(run(main))
