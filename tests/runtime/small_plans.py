"""The small bundle as it would be for a GPU: a plan for each network. The plans are bytes that nothing executes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engines.bundle import Bundle
from engines.checks import capabilities
from engines.manifest import source_digest
from engines.memory.extents import shape_of
from engines.schema import Engine, Manifest, Port, ShapeRange
from engines.writer import write_bundle
from tests.runtime import small_bundle
from tests.runtime.small_bundle import CLIP_TOKENS


def build(
    folder: Path, target: str = "sm89", finish: Callable[[Manifest], Manifest] | None = None, **changes: Any
) -> Bundle:
    """Write a bundle of plans at ``folder``; ``changes`` replace fields of its engine."""
    made = manifest(target, **changes)
    tokenizers = {"clip": small_bundle.clip_tokenizer(), "t5": small_bundle.t5_tokenizer()}
    files: dict[str, Path | bytes] = {network.file: plan(name) for name, network in made.networks.items()}
    files |= {made.tokenizers[name].file: msgspec.json.encode(tokenizer) for name, tokenizer in tokenizers.items()}
    return write_bundle(folder, made, files, finish=finish)


def plan(name: str) -> bytes:
    """What stands for the plan of a network."""
    return f"the plan of {name}".encode() * 100


def manifest(target: str = "sm89", precision: str = "fp16", **changes: Any) -> Manifest:
    """The manifest of that bundle, with no files yet."""
    onnx = small_bundle.manifest()
    networks = {
        name: msgspec.structs.replace(network, file=f"{name}.plan", format="plan")
        for name, network in onnx.networks.items()
    }
    profiles = {name: {port.name: _range(port) for port in network.inputs} for name, network in networks.items()}
    engine: dict[str, Any] = {
        "flavour": "tensorrt-rtx",
        "version": "1.7.1.116",
        "compute_capabilities": capabilities(target),
        "opt_level": 3,
        "profiles": profiles,
        "onnx": {name: source_digest({f"{name}.onnx": "a" * 64}) for name in networks},
    }
    return msgspec.structs.replace(
        onnx, precision=precision, target=target, networks=networks, engine=Engine(**{**engine, **changes})
    )


def profiled(tokens: int, side: int) -> Manifest:
    """Plans for images of at most ``tokens`` image tokens, each side at most ``side`` latent cells."""
    made_of = manifest()
    least = {"batch": 1, "levels": 1, "image_tokens": 4, "text_tokens": 12}
    most = {"batch": 4, "levels": 32, "image_tokens": tokens, "text_tokens": 12}
    made = {
        "clip": {"input_ids": ShapeRange([1, CLIP_TOKENS], [1, CLIP_TOKENS], [4, CLIP_TOKENS])},
        "t5": {"input_ids": ShapeRange([1, 12], [1, 12], [4, 12])},
        "vae_decoder": {"latents": ShapeRange([1, 4, 4, 4], [1, 4, 8, 8], [4, 4, side, side])},
        **{
            name: {
                port.name: ShapeRange(shape_of(port, least), shape_of(port, least), shape_of(port, most))
                for port in made_of.networks[name].inputs
            }
            for name in ("conditioner", "backbone")
        },
    }
    engine = msgspec.structs.replace(made_of.engine, profiles=made)
    assert isinstance(engine, Engine)
    return msgspec.structs.replace(made_of, engine=engine)


def _range(port: Port) -> ShapeRange:
    low, usual, high = ([value if isinstance(d, str) else d for d in port.shape] for value in (1, 2, 4))
    return ShapeRange(low, usual, high)  # type: ignore[arg-type]
