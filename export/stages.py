"""The stages of a build, each resumable: merge, one export and parity check a network, the bundle.

Results lie in ``workdir/<key>``, where the key digests the inputs, the tools and this code; a stage whose verified
result is there is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engines.bundle import Bundle
from engines.manifest import MANIFEST_NAME, ParityResult
from engines.writer import write_bundle
from export.assemble import Parts, assemble, tool_versions
from export.configs import read_json, read_vae_config
from export.errors import ExportError
from export.merge import MergedStudent, MergePlan, merged_student, plan_merge
from export.models import ModelSpec
from export.tokenizer_files import TokenizerFile, tokenizer_file
from foundation.files import atomic_file, sha256_file, sha256_tree

if TYPE_CHECKING:
    from export.networks.base import Network

NETWORKS = ("clip", "t5", "backbone", "vae_decoder")
STAGES = ("merge", *NETWORKS, "bundle")

_PROGRAM_MEMORY = 700 << 20
"""Bytes that torch, diffusers, transformers and the exporter take before any weight is read (measured)."""

_COPIES = 5
"""Copies of one network's weights at the peak: reference, graph, serialised model, session, and its packed matrices."""


@dataclass(frozen=True)
class Request:
    """What to build, from what, and where to. workdir keeps the stages' results between runs."""

    spec: ModelSpec
    precision: str
    target: str
    base: Path
    adapter: Path
    out: Path
    workdir: Path


@dataclass(frozen=True)
class Sources:
    """A request whose inputs were found to fit together, from their headers. parents: digests by name."""

    request: Request
    plan: MergePlan
    parents: dict[str, str]
    tokenizers: dict[str, TokenizerFile]
    work: Path


@dataclass(frozen=True)
class Estimate:
    """What a build needs at most, in bytes: memory, disk for the work folder, disk for the bundle."""

    memory: int
    work: int
    bundle: int


@dataclass(frozen=True)
class Event:
    """Progress of a stage (one of ``STAGES``): ``done`` of ``total`` steps; ``reused`` when nothing had to be done."""

    stage: str
    done: int
    total: int
    note: str = ""


Report = Callable[[Event], None]


def inspect_sources(request: Request) -> Sources:
    """Check everything that can be checked before the work starts. Raises an ArcFlowError that says what to do."""
    base, adapter = request.base, request.adapter
    _check_out(request.out)
    if not (base / "model_index.json").is_file():
        raise ExportError(f"no base pipeline at {base}: model_index.json is missing; give --base a FluxPipeline folder")
    plan = plan_merge(base / "transformer", adapter)
    parents = {"adapter": sha256_tree(adapter), "base": sha256_tree(base)}
    clip = read_json(base / "text_encoder" / "config.json")
    read_json(base / "text_encoder_2" / "config.json")
    read_vae_config(base / "vae")
    lengths = {
        "clip": ("tokenizer", int(clip.get("max_position_embeddings", 0))),
        "t5": ("tokenizer_2", request.spec.limits.text_tokens.max),
    }
    tokenizers = {name: tokenizer_file(name, base / folder, length) for name, (folder, length) in lengths.items()}
    return Sources(request, plan, parents, tokenizers, request.workdir / _key(request, parents))


def _check_out(out: Path) -> None:
    """Raise ExportError unless ``out`` is free, empty, or a bundle: anything else must not be replaced."""
    if out.exists() and not (out / MANIFEST_NAME).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not a bundle: it will not be replaced; choose another --out")


def estimate(sources: Sources) -> Estimate:
    """What the build will need, from the sizes in the headers."""
    from export.weights import open_folder

    folders = ("text_encoder", "text_encoder_2", "vae")
    others = [open_folder(sources.request.base / folder).size for folder in folders]
    student = sources.plan.size
    networks = sum(others) + student
    return Estimate(memory=_PROGRAM_MEMORY + _COPIES * max(*others, student), work=student + networks, bundle=networks)


def check_space(sources: Sources, needed: Estimate) -> None:
    """Raise ExportError where the work folder or the bundle cannot be written, or the disk has no room for them."""
    places = ((sources.work, needed.work, "--workdir"), (sources.request.out, needed.bundle, "--out"))
    for folder, size, option in places:
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ExportError(f"cannot write {folder}: {there} is closed to you; choose another {option}")
        free = shutil.disk_usage(there).free
        if free < size:
            raise ExportError(f"{folder} needs {size:,} bytes, {free:,} are free there; choose another {option}")


def build(sources: Sources, report: Report) -> Bundle:
    """Run every stage that has no verified result yet, and write the bundle, whole or not at all.

    Raises an ArcFlowError; a bundle that stands at the output keeps standing then.
    """
    student = _merged(sources, report)
    networks = [_network(name, sources, student) for name in NETWORKS]
    parity: list[ParityResult] = []
    for network in networks:
        parity += _exported(network, sources, report)
    request = sources.request
    report(Event("bundle", 0, 1))
    manifest = assemble(
        Parts(
            spec=request.spec,
            precision=request.precision,
            target=request.target,
            base=request.base,
            student=student,
            policy=sources.plan.adapter_config.policy,
            networks=networks,
            tokenizers=sources.tokenizers,
            parents={**sources.parents, "student": student.digest},
            parity=parity,
        )
    )
    files: dict[str, Path | bytes] = {f"{name}.onnx": sources.work / f"{name}.onnx" for name in NETWORKS}
    files |= {tokenizer.spec.file: tokenizer.source for tokenizer in sources.tokenizers.values()}
    bundle = write_bundle(request.out, manifest, files)
    report(Event("bundle", 1, 1, str(request.out)))
    return bundle


def _merged(sources: Sources, report: Report) -> MergedStudent:
    total = len(sources.plan.steps)
    report(Event("merge", total, total, "planned"))
    return merged_student(sources.plan, sources.parents["base"], sources.parents["adapter"])


def _network(name: str, sources: Sources, student: MergedStudent) -> Network:
    """The description of one network; architectures other than FLUX will choose their own here."""
    from export.networks.backbone import backbone_network
    from export.networks.clip import clip_network
    from export.networks.t5 import t5_network
    from export.networks.vae_decoder import vae_decoder_network

    base = sources.request.base
    match name:
        case "clip":
            return clip_network(base / "text_encoder")
        case "t5":
            return t5_network(base / "text_encoder_2")
        case "backbone":
            return backbone_network(student, base / "transformer", sources.request.adapter)
        case _:
            return vae_decoder_network(base / "vae")


def _exported(network: Network, sources: Sources, report: Report) -> Sequence[ParityResult]:
    """Export one network into the work folder and check it; what was found before is reused if it is unaltered."""
    from export.graph import export_inline
    from export.parity import check_parity

    path, record = sources.work / f"{network.name}.onnx", sources.work / f"{network.name}.json"
    found = read_record(path, record)
    if found is not None:
        report(Event(network.name, 2, 2, "reused"))
        return found
    report(Event(network.name, 0, 2, "export"))
    model = export_inline(network)
    report(Event(network.name, 1, 2, "parity"))
    results = check_parity(network, model, sources.request.precision)
    with atomic_file(path) as temporary:
        temporary.write_bytes(model)
    content = {"sha256": hashlib.sha256(model).hexdigest(), "parity": msgspec.to_builtins(results)}
    with atomic_file(record) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    report(Event(network.name, 2, 2, "done"))
    return results


def read_record(path: Path, record: Path) -> list[ParityResult] | None:
    """The parity results of the exported network ``path`` if it is what its ``record`` says; else None."""
    try:
        content = json.loads(record.read_text())
        if sha256_file(path) == content["sha256"]:
            return msgspec.convert(content["parity"], list[ParityResult])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # A record that is missing or damaged means only that the stage runs again.
    return None


def _key(request: Request, parents: dict[str, str]) -> str:
    """Digest of everything that the stages' results depend on, this code included."""
    root = Path(__file__).parent
    code = sorted(root.rglob("*.py"))
    code += [root.parent / "arcflow" / f"{name}.py" for name in ("adapter", "field", "flux", "head", "students")]
    facts = {
        "model": request.spec.name,
        "precision": request.precision,
        "target": request.target,
        "parents": parents,
        "tools": tool_versions(),
        "code": [sha256_file(path) for path in code],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
