"""From what a user asked for to what all plans of a bundle share: checked, cheapest check first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.bundle import Bundle
from engines.manifest import Limits, Manifest, source_digest
from export.precision import Precision
from export.tensorrt.build import DEFAULT_OPT_LEVEL, OPT_LEVELS, Options
from export.tensorrt.errors import EngineError
from export.tensorrt.estimate import PlanEstimate, combined, estimate
from export.tensorrt.flavours import choose_flavour, load
from export.tensorrt.plans import Setup, Source
from export.tensorrt.profiles import choose_shapes
from export.tensorrt.targets import check_target

_COMPUTE = {"float32": Precision.FP32, "float16": Precision.FP16, "bfloat16": Precision.BF16}


@dataclass(frozen=True)
class Request:
    """What a user typed; None: the default. timing_cache: folder for the data-centre flavour's measurements."""

    target: str
    flavour: str | None = None
    resolutions: str | None = None
    batch: str | None = None
    text_tokens: str | None = None
    opt_level: int = DEFAULT_OPT_LEVEL
    timing_cache: Path | None = None


def prepare(request: Request, limits: Limits, precision: str) -> Setup:
    """Check a request against a model's limits and precision, and load TensorRT. Raises EngineError, FlavourError."""
    target = check_target(request.target, precision)
    if request.opt_level not in OPT_LEVELS:
        raise EngineError(f"--opt-level {request.opt_level} is not possible; allowed: 0 to {OPT_LEVELS[-1]}")
    shapes = choose_shapes(limits, request.resolutions, request.batch, request.text_tokens)
    toolkit = load(choose_flavour(target, request.flavour))
    cache = request.timing_cache and request.timing_cache / f"{toolkit.flavour}-{toolkit.version}-{target.name}.cache"
    return Setup(target, toolkit, shapes, Options(opt_level=request.opt_level, timing_cache=cache))


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
