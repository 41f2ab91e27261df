"""The small bundle as plans that :mod:`tests.runtime.cuda.fake_tensorrt` runs, sealed by this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engines import trust
from engines.bundle import Bundle, open_bundle
from engines.staleness import onnx_digests
from engines.writer import write_bundle
from export.tensorrt.plans import network_profiles
from export.tensorrt.profiles import choose_shapes
from tests.runtime import small_plans
from tests.runtime.cuda.fake_tensorrt import MAGIC


def build(
    folder: Path,
    onnx: Path,
    *,
    seal: bool = True,
    plans: dict[str, bytes] | None = None,
    own_profiles: Any = None,
    **changes: Any,
) -> Bundle:
    """Write the plans of the bundle at ``onnx`` to ``folder``; ``changes`` replace fields of the engine."""
    source = open_bundle(onnx)
    profiles = own_profiles or network_profiles(source.manifest, choose_shapes(source.manifest.limits))
    engine = {"profiles": profiles, "onnx": onnx_digests(source.manifest), **changes}
    manifest = small_plans.manifest("sm89", precision="fp32", **engine)
    manifest = msgspec.structs.replace(manifest, tokenizers=source.manifest.tokenizers)
    files: dict[str, Path | bytes] = {
        network.file: MAGIC + source.read(f"{name}.onnx") for name, network in manifest.networks.items()
    }
    files |= {spec.file: source.read(spec.file) for spec in manifest.tokenizers.values()}
    files |= plans or {}
    return write_bundle(folder, manifest, files, finish=trust.sealed if seal else None)
