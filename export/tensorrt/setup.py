"""From what a user asked for to what all plans of a bundle share: checked, cheapest check first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engines.bundle import Bundle
from engines.manifest import source_digest
from engines.schema import Manifest
from export.precision import Precision
from export.tensorrt.build import DEFAULT_OPT_LEVEL, Options
from export.tensorrt.errors import EngineError
from export.tensorrt.estimate import PlanEstimate, combined, estimate
from export.tensorrt.flavours import choose_flavour, load
from export.tensorrt.plans import Setup, Source
from export.tensorrt.profiles import Shapes
from export.tensorrt.targets import check_target

_COMPUTE = {"float32": Precision.FP32, "float16": Precision.FP16, "bfloat16": Precision.BF16}


def prepare(
    target: str, precision: str, shapes: Shapes, timing: Path, flavour: str | None = None,
    opt_level: int = DEFAULT_OPT_LEVEL,
) -> Setup:  # fmt: skip
    """Check what was asked for, the cheapest first, and load TensorRT.

    flavour: None for what the target takes and is installed; timing: folder for the data-centre flavour's
    measurements. Raises EngineError, FlavourError.
    """
    found, options = check_target(target, precision), Options(opt_level)
    toolkit = load(choose_flavour(found, flavour))
    cache = timing / f"{toolkit.flavour}-{toolkit.version}-{found.name}.cache"
    return Setup(found, toolkit, shapes, replace(options, timing_cache=cache))


def bundle_sources(bundle: Bundle) -> dict[str, Source]:
    """The ONNX networks of an opened bundle. Raises EngineError where it holds plans already."""
    manifest = bundle.manifest
    if manifest.engine is not None:
        raise EngineError(
            f"{bundle.root} holds plans for {manifest.target}, and plans are built from ONNX: give the bundle "
            "with target onnx"
        )
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        name: Source(
            bundle.root / network.file, source_digest({path: digests[path] for path in (network.file, *network.data)})
        )
        for name, network in manifest.networks.items()
    }


def weight_sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of each ONNX network, its data files included: nearly all of them are weights."""
    sizes = {entry.path: entry.size for entry in manifest.files}
    return {
        name: sum(sizes[path] for path in (network.file, *network.data)) for name, network in manifest.networks.items()
    }


def total_estimate(manifest: Manifest, sizes: Mapping[str, int], setup: Setup) -> PlanEstimate:
    """What all plans take that are built one after the other. sizes: of each network's weights, in bytes."""
    found = []
    for name, network in manifest.networks.items():
        fp8 = name == "backbone" and manifest.precision == Precision.FP8
        precision = Precision.FP8 if fp8 else _COMPUTE[network.compute]
        found.append(estimate(sizes[name], setup.target.name, precision, setup.toolkit.flavour))
    return combined(found)
