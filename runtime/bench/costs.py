"""Each network of a bundle against its physical limit on the machine it ran on: the rows of ``--roofline``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.bundle import Bundle, open_bundle
from engines.staleness import onnx_digests, source_folder
from runtime.bench.roofline import Cost, Peak, cost_of, limit_of
from runtime.errors import RequestError

_STAGES: Mapping[str, str] = {"backbone": "evaluation 1", "vae_decoder": "vae"}
"""The stage of a measurement that is one evaluation of a network; all others are of the stage "text"."""
_TEXT = "text"


@dataclass(frozen=True)
class Row:
    """A network: what it takes at least, its limit in seconds and what sets it, what it took, and the share.

    measured_s, share: None where no stage is this network alone.
    """

    network: str
    operations: float
    weight_bytes: int
    port_bytes: int
    limit_s: float
    bound: str
    measured_s: float | None
    share: float | None
    peak: str


def costs_of(bundle: Bundle, sizes: Mapping[str, Mapping[str, int]], source: Path | None) -> dict[str, Cost]:
    """The cost of every network, counted in its ONNX file: the bundle's own, or that its plans were built from.

    sizes: for each network its symbolic dimensions. source: the ONNX bundle of the plans (default: the one beside
    them). Raises RequestError where there is none, or it is not the one; BackendError where it cannot be counted.
    """
    onnx = bundle if bundle.manifest.engine is None else _source(bundle, source)
    networks = onnx.manifest.networks
    return {name: cost_of(onnx.read(network.file), sizes[name]) for name, network in networks.items()}


def rows(costs: Mapping[str, Cost], peak: Peak, took: Mapping[str, float]) -> list[Row]:
    """A row a network, and one for several text encoders together, which are one stage.

    took: median seconds by stage. Raises BackendError where the peak of a type is not known.
    """
    texts = [name for name in costs if name not in _STAGES]
    found = []
    for names in [*([name] for name in costs), *([texts] if len(texts) > 1 else [])]:
        parts = [costs[name] for name in names]
        limits = [limit_of(cost, peak) for cost in parts]
        limit, stage = sum(each.seconds for each in limits), _STAGES.get(names[0], _TEXT)
        measured = took.get(stage) if stage != _TEXT or names == texts else None
        found.append(
            Row(
                network=" + ".join(names),
                operations=sum(cost.total_operations for cost in parts),
                weight_bytes=sum(cost.weight_bytes for cost in parts),
                port_bytes=sum(cost.port_bytes for cost in parts),
                limit_s=limit,
                bound=max(limits, key=lambda each: each.seconds).bound,
                measured_s=measured,
                share=limit / measured if measured else None,
                peak=peak.source,
            )
        )
    return found


def _source(bundle: Bundle, folder: Path | None) -> Bundle:
    """The ONNX that plans were built from, held to the digests in their manifest."""
    where = source_folder(bundle) if folder is None else folder
    if not where.is_dir():
        raise RequestError(
            f"--roofline counts the ONNX that plans were built from, and there is no folder {where}: give --onnx FOLDER"
        )
    source = open_bundle(where, contents="when used")
    engine = bundle.manifest.engine
    if engine is None or onnx_digests(source.manifest) != dict(engine.onnx):
        raise RequestError(f"{where} is not what the plans of {bundle.root} were built from: give --onnx FOLDER")
    return source
