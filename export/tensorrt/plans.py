"""All networks of a bundle as plans, and the manifest that describes them. A build that was cut short resumes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from engines.bundle import Bundle
from engines.schema import Engine, Manifest, TokenizerSpec
from engines.trust import sealed
from engines.writer import write_bundle
from export.folders.keys import key_of, stage_folder
from export.folders.places import Needs
from export.reporting import Report, silent
from export.tensorrt.build import DEFAULT_OPT_LEVEL, Options, PlanReport, build_plan, decode, encode
from export.tensorrt.flavours import Toolkit, choose_flavour, load
from export.tensorrt.profiles import Profile, Shapes, dimension_ranges, make_profile, narrowed
from export.tensorrt.progress import Progress
from export.tensorrt.targets import Target, check_target
from foundation.files import atomic_file, sha256_file

_RECORD = "record.json"


@dataclass(frozen=True)
class Setup:
    """What all plans of a bundle share: for which GPUs, by which TensorRT, for which shapes, how hard it works."""

    target: Target
    toolkit: Toolkit
    shapes: Shapes
    options: Options

    def describe(self, needs: Needs) -> str:
        """One line for the terminal: what builds the plans, for what, and what that takes."""
        flavour, targets = f"{self.toolkit.flavour} {self.toolkit.version}", ", ".join(self.target.capabilities)
        return f"plans by {flavour} for {targets}: about {needs}"


@dataclass(frozen=True)
class Source:
    """One network to build: its ONNX file, and ``engines.manifest.source_digest`` of it and of its data."""

    onnx: Path
    digest: str


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


def network_profiles(manifest: Manifest, shapes: Shapes) -> dict[str, Profile]:
    """The profile of every network of a bundle. Raises EngineError."""
    ranges = dimension_ranges(shapes, manifest.latent)
    drops = {name: tokenizer.drop for name, tokenizer in manifest.tokenizers.items()}
    return {
        name: make_profile(name, network, ranges, drops.get(name, 0)) for name, network in manifest.networks.items()
    }


def build_plans(
    manifest: Manifest,
    sources: Mapping[str, Source],
    workdir: Path,
    setup: Setup,
    report: Report = silent,
) -> list[PlanReport]:
    """Build ``<network>.plan`` for every network of ``manifest``; a plan that is there, unaltered, is kept.

    manifest: of the ONNX networks (its ``files`` are not looked at); sources: by network. Each plan has a folder of its
    own in ``workdir``, named by all that it is made from. Raises EngineError, ArcFlowError.
    """
    profiles = network_profiles(manifest, setup.shapes)
    reports = []
    for name in manifest.networks:
        key = _key(name, sources[name].digest, profiles[name], setup)
        plan = stage_folder(workdir, f"plan-{name}", key) / f"{name}.plan"
        record = plan.with_name(_RECORD)
        found = _read_record(plan, record, key)
        if found is None:
            found = build_plan(
                sources[name].onnx,
                plan,
                target=setup.target,
                profile=profiles[name],
                toolkit=setup.toolkit,
                name=name,
                options=setup.options,
                report=lambda progress, name=name: _tell(report, name, progress),  # type: ignore[misc]
            )
            with atomic_file(record) as temporary:
                temporary.write_bytes(encode({"key": key, "report": found}))
        else:
            _tell(report, name, Progress(1.0, "reused"))
        reports.append(found)
    return reports


def _tell(report: Report, name: str, progress: Progress) -> None:
    report(name, int(1000 * progress.fraction), 1000, progress.phase)


def plan_manifest(
    manifest: Manifest, setup: Setup, reports: Sequence[PlanReport], sources: Mapping[str, Source]
) -> Manifest:
    """The manifest of the bundle of plans, complete but for its files and the seal of its engine.

    Its limits are those of the profiles; what was found out about the ONNX networks (parity, quantisation) stays.
    """
    first = reports[0]
    memory = {report.network: report.memory for report in reports if report.memory is not None}
    engine = Engine(
        flavour=first.flavour,  # type: ignore[arg-type]
        version=first.version,
        compute_capabilities=list(setup.target.capabilities),
        opt_level=setup.options.opt_level,
        profiles={report.network: report.profile for report in reports},
        onnx={name: source.digest for name, source in sources.items()},
        memory=memory if len(memory) == len(reports) else {},
    )
    return msgspec.structs.replace(
        manifest,
        target=setup.target.name,
        networks={
            name: msgspec.structs.replace(network, file=f"{name}.plan", format="plan", data=())
            for name, network in manifest.networks.items()
        },
        tokenizers={name: _narrow(manifest, name, setup.shapes) for name in manifest.tokenizers},
        limits=narrowed(manifest.limits, setup.shapes),
        tools={**manifest.tools, first.flavour: first.version},
        engine=engine,
        files=(),
        digest="",
    )


def plan_files(reports: Sequence[PlanReport]) -> dict[str, Path]:
    """The plans by their names in a bundle."""
    return {f"{report.network}.plan": report.path for report in reports}


def write_plans(
    out: Path, manifest: Manifest, tokenizers: Mapping[str, bytes], reports: Sequence[PlanReport]
) -> Bundle:
    """Write the bundle ``out``: the plans move into it, sealed, if they are still what their reports say.

    manifest: of :func:`plan_manifest`; tokenizers: content by path. Raises BundleError, TrustError, ArcFlowError.
    """
    plans = plan_files(reports)
    expected = {f"{report.network}.plan": report.sha256 for report in reports}
    bundle = write_bundle(out, manifest, {**plans, **tokenizers}, expected=expected, consume=plans, finish=sealed)
    for report in reports:
        shutil.rmtree(report.path.parent, ignore_errors=True)  # The record of a plan that is in the bundle now.
    return bundle


def _narrow(manifest: Manifest, name: str, shapes: Shapes) -> TokenizerSpec:
    """The tokenizer of a network whose text may be shorter now than the model would take."""
    tokenizer = manifest.tokenizers[name]
    if not any("text_tokens" in port.shape for port in manifest.networks[name].inputs):
        return tokenizer
    return msgspec.structs.replace(tokenizer, max_tokens=shapes.text_tokens.max + tokenizer.drop)


def _key(name: str, digest: str, profile: Profile, setup: Setup) -> str:
    """Of one network's plan. Student, precision, adapter and calibration are in the digest of its ONNX; resolutions,
    batch and text tokens are in its profile."""
    return key_of(
        {
            "network": name,
            "onnx": digest,
            "profile": msgspec.to_builtins(profile),
            "target": setup.target.capabilities,
            "flavour": [setup.toolkit.flavour, setup.toolkit.version],
            "options": [setup.options.opt_level, setup.options.workspace],
        },
        __name__,
    )


def _read_record(plan: Path, record: Path, key: str) -> PlanReport | None:
    """The report of a plan that is there and is what its record says; else None."""
    try:
        content = msgspec.json.decode(record.read_bytes())
        if content["key"] != key:
            return None
        found = replace(decode(content["report"], PlanReport), path=plan)  # The folder may have moved since.
        return found if sha256_file(plan) == found.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # A record that is missing or damaged means only that the plan is built again.
