"""The whole build: networks, plans where the target asks for them, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.manifest import source_digest
from engines.schema import Gate, Manifest
from engines.writer import write_bundle
from export.assembling.manifest import assemble
from export.assembling.record import Exported
from export.assembling.stages import Event, Report, build_networks

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from export.students.request import Headers, Sources, Wanted
    from export.tensorrt.build import PlanReport
    from export.tensorrt.estimate import PlanEstimate
    from export.tensorrt.plans import Setup, Source

_MOVE_FROM = 1 << 30
"""Bytes of ONNX from which on files move into the bundle instead of being copied: no room is needed twice then, and
the next build of the same networks makes them again."""


@dataclass(frozen=True)
class Finished:
    """What was built. paths: the bundle, or of each network alone; plans: what is known of each plan."""

    name: str
    networks: Sequence[Exported]
    plans: Sequence[PlanReport]
    bundle: Bundle | None
    sizes: Mapping[str, int]

    @property
    def paths(self) -> list[Path]:
        """What to name to the user: the bundle's folder; without one, the network files."""
        if self.bundle is not None:
            return [self.bundle.root]
        return [plan.path for plan in self.plans] or [network.onnx for network in self.networks]

    @property
    def files(self) -> int:
        """How many files there are."""
        return len(self.sizes)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes.values())

    def summary(self) -> dict[str, Any]:
        """Plain data for a program."""
        return {
            "paths": [str(path) for path in self.paths],
            "files": dict(self.sizes),
            "networks": {
                network.name: {
                    "nodes": network.record.nodes,
                    "quantised": len(network.record.quantised),
                    "parity": [msgspec.to_builtins(result) for result in network.record.parity],
                }
                for network in self.networks
            },
            "plans": {plan.network: {"bytes": plan.size, "seconds": round(plan.seconds, 2)} for plan in self.plans},
        }


@dataclass(frozen=True)
class Plans:
    """How plans will be built: found out, and TensorRT loaded, before any work."""

    setup: Setup

    @classmethod
    def prepare(cls, wanted: Wanted, flavour: str | None, opt_level: int) -> Plans:
        """Raises EngineError or FlavourError where the target's plans cannot be built here."""
        from export.tensorrt.setup import prepare

        timing = wanted.workdir / "timing"
        return cls(prepare(wanted.target, wanted.precision, wanted.shapes, timing, flavour, opt_level))

    def needs(self, headers: Headers) -> PlanEstimate:
        """What all plans will take, one after the other."""
        from export.assembling.estimate import high_bytes, stored_sizes
        from export.networks.base import BACKBONE
        from export.precision import Precision, compute_dtype
        from export.tensorrt.estimate import combined, estimate

        request, found = headers.request, []
        precisions = {"float32": Precision.FP32, "float16": Precision.FP16, "bfloat16": Precision.BF16}
        for name, size in stored_sizes(headers).items():
            precision = precisions[compute_dtype(name, request.precision, request.target)]
            high = 0
            if name == BACKBONE and request.precision is Precision.FP8:
                precision, high = Precision.FP8, high_bytes(headers)
            found.append(estimate(size, request.target, precision, self.setup.toolkit.flavour, high))
        return combined(found)

    def check_fit(self, headers: Headers) -> None:
        """Raise EngineError where this machine has not got what the plans will take."""
        from export.tensorrt.estimate import check_fit

        check_fit(self.needs(headers), headers.request.workdir)

    def describe(self, needed: PlanEstimate) -> str:
        """One line for the terminal."""
        toolkit = self.setup.toolkit
        time = "" if needed.seconds is None else f", some {max(needed.seconds / 60, 1):,.0f} min"
        return (
            f"plans by {toolkit.flavour} {toolkit.version} for {', '.join(self.setup.target.capabilities)}: about "
            f"{needed.memory / 1e9:,.1f} GB of memory and {needed.disk / 1e9:,.1f} GB of disk more{time}"
        )


def build(sources: Sources, plans: Plans | None, report: Report) -> Finished:
    """Run every stage that has no verified result yet, and write the bundle, whole or not at all.

    Raises an ArcFlowError; a bundle that stands at the output keeps standing then.
    """
    networks = build_networks(sources, report)
    manifest = assemble(sources, networks, _gate(sources, networks, report))
    reports: Sequence[PlanReport] = ()
    if plans is not None:
        reports, manifest = _plans(sources, networks, manifest, plans, report)
    request = sources.request
    name = f"{manifest.model}-{manifest.precision}-{manifest.target}"
    files = _files(networks, reports)
    sizes = {path: source.stat().st_size for path, source in files.items()}
    if request.only:
        return Finished(name, networks, reports, None, sizes)
    report(Event("bundle", 0, 0, "write"))
    tokenizers = {tokenizer.spec.file: tokenizer.source for tokenizer in sources.tokenizers.values()}
    if reports:
        from export.tensorrt.plans import write_plans

        bundle = write_plans(request.out, manifest, tokenizers, reports)
    else:
        consume = files if sum(sizes.values()) >= _MOVE_FROM else {}
        made = {name: digest for network in networks for name, digest in network.record.files.items()}
        bundle = write_bundle(request.out, manifest, {**files, **tokenizers}, expected=made, consume=consume)
    report(Event("bundle", 1, 1, str(request.out)))
    return Finished(name, networks, reports, bundle, {e.path: e.size for e in bundle.manifest.files})


def _gate(sources: Sources, networks: Sequence[Exported], report: Report) -> Gate | None:
    """The quality gate's figures, where it applies."""
    if sources.calibration is None or sources.request.only:
        return None
    from export.assembling.gate import measure

    report(Event("gate", 0, 0, "generate"))
    gate = measure(sources, networks)
    figures = "" if gate is None else ", ".join(f"{r.measure} {r.value:.2%}" for r in gate.results)
    report(Event("gate", 1, 1, figures or "not measured: the student is too large to run here"))
    return gate


def _plans(
    sources: Sources, networks: Sequence[Exported], manifest: Manifest, plans: Plans, report: Report
) -> tuple[Sequence[PlanReport], Manifest]:
    """The plans of all networks, and the manifest that describes them."""
    from export.tensorrt.plans import build_plans, plan_manifest

    origins = {network.name: _source(network) for network in networks}
    reports = build_plans(
        manifest,
        origins,
        sources.request.workdir,
        plans.setup,
        lambda name, progress: report(Event(f"plan {name}", int(1000 * progress.fraction), 1000, progress.phase)),
    )
    return reports, plan_manifest(manifest, plans.setup, reports, origins)


def _source(network: Exported) -> Source:
    from export.tensorrt.plans import Source

    return Source(network.onnx, source_digest(network.record.files))


def _files(networks: Sequence[Exported], plans: Sequence[PlanReport]) -> dict[str, Path]:
    """What the bundle is made of, less the tokenizers."""
    if plans:
        from export.tensorrt.plans import plan_files

        return plan_files(plans)
    return {name: network.folder / name for network in networks for name in network.record.files}
