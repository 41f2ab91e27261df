"""A Qwen-Image bundle of a small random pipeline, exported as builds do it; one network has its weights beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import convert_model_to_external_data

from engines.bundle import Bundle
from engines.schema import Limits, Manifest, Momentum, Network, Port, Range, Schedule
from engines.writer import write_bundle
from export.architectures.qwen import QWEN
from export.networks.base import Network as Traced
from tests.export.qwen_export import Exported

LIMITS = Limits(Range(1, 1, 2), Range(16, 64, 128), Range(16, 64, 128), Range(8, 32, 48), 16)
_DATA = {"text": "text.weights"}
"""Networks whose weights lie in a file of their own."""


def build(folder: Path, exported: Exported, work: Path) -> Bundle:
    """Write the bundle of the exported networks at ``folder``; ``work`` is an empty folder."""
    files: dict[str, Path | bytes] = {}
    for name in exported.networks:
        model = exported.model(name)
        files |= _beside(model, name, work) if name in _DATA else {f"{name}.onnx": model}
    tokenizers = QWEN.tokenizers(exported.sources.base, LIMITS)
    files |= {tokenizer.spec.file: tokenizer.source for tokenizer in tokenizers.values()}
    manifest = Manifest(
        model="small-qwen",
        architecture="qwen",
        precision="fp32",
        target="cpu",
        networks={name: _entry(network) for name, network in exported.networks.items()},
        limits=LIMITS,
        latent=QWEN.latent(exported.sources.base),
        schedule=Schedule(
            shift=3.2, guidance=4.0, nfe=2, final_step_ratio=1.0, conditioning_dtype="bfloat16", max_nfe=QWEN.max_nfe
        ),
        momentum=Momentum(modes=exported.student.modes, packed_channels=64, patch_positions=4),
        tokenizers={name: tokenizer.spec for name, tokenizer in tokenizers.items()},
        parents={},
        tools={},
        parity=[],
    )
    return write_bundle(folder, manifest, files)


def _beside(data: bytes, name: str, work: Path) -> dict[str, Path | bytes]:
    """The model with its weights in another file."""
    model = onnx.load_from_string(data)
    convert_model_to_external_data(model, location=_DATA[name], size_threshold=1024)
    onnx.save(model, work / f"{name}.onnx")
    return {file: work / file for file in (f"{name}.onnx", _DATA[name])}


def _entry(network: Traced) -> Network:
    inputs, outputs = (
        [Port(name, dtype, list(shape)) for name, (dtype, shape) in ports.items()]  # type: ignore[arg-type]
        for ports in (network.ports_in, network.ports_out)
    )
    data = (_DATA[network.name],) if network.name in _DATA else ()
    return Network(f"{network.name}.onnx", inputs, outputs, data=data)
