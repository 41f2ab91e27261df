"""Whether a bundle of plans is still good here: the machine, the seal, and the ONNX that the plans were built from.

Plans are good for one version of one flavour of TensorRT, on GPUs of the compute capabilities they were built for, as
long as the networks are those of today. What cannot be asked (no GPU, no TensorRT, no source beside the bundle) is
noted and does not count against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.bundle import Bundle, inspect, is_folder
from engines.errors import BundleError, StaleBundleError
from engines.locate import BundleName, rebuild_hint
from engines.machine import Machine, this_machine
from engines.manifest import source_digest
from engines.schema import SOURCE_TARGET, Engine, Manifest
from engines.trust import why_not_ours

_Finding = tuple[str | None, str | None]
"""What differs, and what could not be compared."""


@dataclass(frozen=True)
class Findings:
    """differences: what makes the plans unusable, a half sentence each. notes: what could not be compared."""

    differences: tuple[str, ...]
    notes: tuple[str, ...]


def compare(bundle: Bundle, machine: Machine | None = None) -> Findings:
    """What differs between the plans of ``bundle`` and this machine (or ``machine``) and their source.

    A bundle without plans has nothing that could differ. Raises TrustError where the machine's key must not be used.
    """
    engine = bundle.manifest.engine
    if engine is None:
        return Findings((), ())
    here = this_machine() if machine is None else machine
    found = (
        (why_not_ours(bundle.manifest), None),
        _compare_toolkit(engine, here),
        _compare_gpus(engine, here),
        _compare_source(bundle, engine),
    )
    return Findings(tuple(text for text, _ in found if text), tuple(text for _, text in found if text))


def require_fresh(bundle: Bundle, machine: Machine | None = None) -> Findings:
    """The findings of :func:`compare`; raises StaleBundleError with all that differs and the command that mends it."""
    findings = compare(bundle, machine)
    if findings.differences:
        what = "; ".join(findings.differences)
        raise StaleBundleError(f"{bundle.root} cannot be used here: {what}. Build it again; {_rebuild(bundle)}")
    return findings


def source_folder(bundle: Bundle) -> Path:
    """Where the ONNX bundle that the plans were built from would lie: beside them."""
    return bundle.root.parent / str(BundleName(bundle.name.model, bundle.name.precision, SOURCE_TARGET))


def onnx_digests(manifest: Manifest) -> dict[str, str]:
    """For each network of an ONNX bundle the digest that ties plans to it (``Engine.onnx``)."""
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    return {
        name: source_digest({path: digests[path] for path in (network.file, *network.data)})
        for name, network in manifest.networks.items()
    }


def _rebuild(bundle: Bundle) -> str:
    """The command that makes the plans anew: from the ONNX beside them where there is one."""
    source = source_folder(bundle)
    if is_folder(source):
        return f"run: python -m export.engine {source} --target {bundle.name.target} --out {bundle.root}"
    return rebuild_hint(str(bundle.name))


def _compare_toolkit(engine: Engine, machine: Machine) -> _Finding:
    built = f"{engine.flavour} {engine.version}"
    found = machine.flavours.get(engine.flavour)
    if found is not None:
        return None if found == engine.version else f"built with {built}, {found} is installed", None
    if not machine.flavours:
        return None, f"TensorRT is not installed: {built} was not compared"
    others = ", ".join(f"{name} {version}" for name, version in sorted(machine.flavours.items()))
    return f"built with {built}, which cannot be read by {others}", None


def _compare_gpus(engine: Engine, machine: Machine) -> _Finding:
    built = ", ".join(engine.compute_capabilities)
    if not machine.gpus:
        return None, f"there is no GPU: {built} was not compared"
    if set(machine.gpus) & set(engine.compute_capabilities):
        return None, None
    return f"built for {built}, the GPU is {', '.join(sorted(set(machine.gpus)))}", None


def _compare_source(bundle: Bundle, engine: Engine) -> _Finding:
    folder = source_folder(bundle)
    if not is_folder(folder):
        return None, f"there is no {folder.name} beside it: its ONNX was not compared"
    try:
        source = inspect(folder.resolve()).manifest
    except BundleError as error:
        return None, f"{folder.name} is not whole, its ONNX was not compared: {error}"
    digests, parents = onnx_digests(source), bundle.manifest.parents
    changed = [f"the ONNX of {name}" for name in sorted(engine.onnx) if digests.get(name) != engine.onnx[name]]
    changed += [f"the {name}" for name in sorted(parents) if source.parents.get(name, parents[name]) != parents[name]]
    return f"built from another source than {folder.name}: {', '.join(changed)}" if changed else None, None
