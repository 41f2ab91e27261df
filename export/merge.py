"""Merging an adapter into its base: ``W + B @ A`` in float32, tensor by tensor, into one new safetensors file.

Everything that can be known from the headers is checked before the first tensor is read: that every LoRA pair
finds its weight, that no tensor is unknown or missing, and every shape. At most one weight, its pair and their
float32 result are in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.configs import read_json
from export.errors import MergeError
from export.tensor_writer import Entry, TensorWriter
from export.weights import TensorInfo, TensorSet, open_folder, tensor_set
from foundation.files import atomic_directory, sha256_file

if TYPE_CHECKING:
    import torch

    from arcflow.adapter import AdapterConfig

WEIGHTS_FILE = "student.safetensors"
MANIFEST_FILE = "merged.json"
_FORMAT = 1
_LISTED = 5
"""How many of a list of wrong keys a message names."""

Report = Callable[[int, int], None]
"""Told (tensors done, tensors in all)."""


@dataclass(frozen=True)
class Step:
    """How one tensor of the student comes about: ``base`` or ``whole`` copied, or ``base`` + B @ A.

    name: in the student's state dict; source: key in its file; lora: keys of (A, B) in the adapter's file.
    """

    name: str
    source: str
    from_adapter: bool
    info: TensorInfo
    lora: tuple[str, str] | None = None


@dataclass(frozen=True)
class MergePlan:
    """A merge that was found possible from the headers alone. config: the base backbone's diffusers configuration."""

    base: TensorSet
    adapter: TensorSet
    config: Mapping[str, Any]
    adapter_config: AdapterConfig
    steps: tuple[Step, ...]

    @property
    def size(self) -> int:
        """Bytes of the merged tensors."""
        return sum(step.info.size for step in self.steps)


@dataclass(frozen=True)
class MergedStudent:
    """A merged student on disk. digest: sha256 of the safetensors file; config: the backbone's configuration."""

    folder: Path
    digest: str
    modes: int
    config: Mapping[str, Any]

    @property
    def weights(self) -> TensorSet:
        """The student's tensors, by state-dict name."""
        return tensor_set(self.folder / WEIGHTS_FILE)


def plan_merge(transformer: Path, adapter: Path) -> MergePlan:
    """Check from the headers that the adapter folder fits the base's ``transformer`` folder, and plan the merge.

    Raises MergeError (keys, shapes), WeightsError (a damaged file), AdapterError (a damaged adapter).
    """
    from arcflow.adapter import WEIGHTS_FILE as ADAPTER_WEIGHTS
    from arcflow.adapter import read_config

    config = read_config(adapter)
    backbone = read_json(transformer / "config.json")
    given = tensor_set(adapter / ADAPTER_WEIGHTS)
    base = open_folder(transformer)
    wanted, replaced = _student_shapes(backbone, config)
    steps = _plan(base, given, wanted, replaced)
    return MergePlan(base, given, backbone, config, steps)


def merge(plan: MergePlan, folder: Path, parents: Mapping[str, str], report: Report | None = None) -> MergedStudent:
    """Write the merged student to ``folder``, whole or not at all, with ``merged.json`` that names its parents.

    parents: digests of what is merged, by name. A folder that holds the verified result of the same parents is
    kept as it is. Raises MergeError where a tensor has values that are not finite.
    """
    done = find_merged(folder, parents)
    if done is not None:
        return done
    entries = [Entry(step.name, step.info.dtype, step.info.shape) for step in plan.steps]
    with atomic_directory(folder) as temporary:
        with TensorWriter(temporary / WEIGHTS_FILE, entries, {"format": "pt"}) as writer:
            for index, step in enumerate(plan.steps):
                writer.write(step.name, _compute(plan, step))
                if report is not None:
                    report(index + 1, len(plan.steps))
        manifest = {
            "format": _FORMAT,
            "parents": dict(parents),
            "sha256": writer.hexdigest(),
            "modes": plan.adapter_config.modes,
            "config": dict(plan.config),
        }
        (temporary / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return MergedStudent(folder, writer.hexdigest(), plan.adapter_config.modes, plan.config)


def find_merged(folder: Path, parents: Mapping[str, str]) -> MergedStudent | None:
    """The merged student in ``folder`` if it is whole, unaltered and of just these parents; else None."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        fits = manifest["format"] == _FORMAT and manifest["parents"] == dict(parents)
        if fits and sha256_file(folder / WEIGHTS_FILE) == manifest["sha256"]:
            return MergedStudent(folder, manifest["sha256"], manifest["modes"], manifest["config"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Anything that is wrong with a cached result means only that it is made again.
    return None


def _student_shapes(
    config: Mapping[str, Any], adapter: AdapterConfig
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(shape of every tensor of the student, adapter key -> student key of what the adapter replaces whole)."""
    import torch

    from arcflow.adapter import student_names
    from arcflow.students import HEAD_PARTS, architecture_of_adapter, build_student

    architecture = architecture_of_adapter(adapter.class_name)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            student = build_student(plain, adapter.modes, architecture.NAME)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise MergeError(f"the base's transformer/config.json does not describe a backbone: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
    whole = [f"{module}.{part}" for module in ("norm_out.linear", *HEAD_PARTS) for part in ("weight", "bias")]
    return shapes, {key: next(iter(student_names({key: None}))) for key in whole}


def _plan(
    base: TensorSet, adapter: TensorSet, wanted: Mapping[str, tuple[int, ...]], replaced: Mapping[str, str]
) -> tuple[Step, ...]:
    from arcflow.adapter import PREFIX, split_keys

    keys = {key.removeprefix(PREFIX): key for key in adapter}
    if len(keys) != len(adapter):
        raise MergeError(f"{adapter.source} has keys both with and without the prefix {PREFIX!r}; keep one of each")
    lora, whole = split_keys(keys, adapter.source)
    own = {name for name in wanted if name not in replaced.values()}
    dropped = {"proj_out.weight", "proj_out.bias"}  # The teacher's velocity head, which the momentum head replaces.
    _refuse(f"{base.source} lacks", own - set(base), "use the base model that the adapter was trained on")
    odd = set(base) - set(wanted) - dropped
    _refuse(f"{base.source} has unknown keys:", odd, "use the base model that the adapter was trained on")
    homeless = {module for module in lora if f"{module}.weight" not in own or len(wanted[f"{module}.weight"]) != 2}
    _refuse("LoRA pairs of the adapter find no weight in the base:", homeless, "use the base it was trained on")
    steps = []
    for name, shape in wanted.items():
        pair = lora.get(name.removesuffix(".weight")) if name.endswith(".weight") and name in own else None
        if name in own:
            info = _expect(base, name, shape)
            steps.append(Step(name, name, False, info, pair))
    if not steps:
        raise MergeError(f"{base.source} has nothing to merge")
    for key, name in replaced.items():
        steps.append(Step(name, whole[key], True, _expect(adapter, whole[key], wanted[name])))
    for module, (a, b) in lora.items():
        rows, columns = wanted[f"{module}.weight"]
        rank = adapter[a].shape[0] if adapter[a].shape else 0
        _expect(adapter, a, (rank, columns))
        _expect(adapter, b, (rows, rank))
    order = {name: index for index, name in enumerate(wanted)}
    return tuple(sorted(steps, key=lambda step: order[step.name]))


def _expect(tensors: TensorSet, key: str, shape: tuple[int, ...]) -> TensorInfo:
    info = tensors[key]
    if info.shape != shape:
        raise MergeError(
            f"{key} has shape {list(info.shape)} in {tensors.source}, {list(shape)} is needed; "
            "use the base model that the adapter was trained on"
        )
    if info.dtype not in ("F64", "F32", "F16", "BF16"):
        raise MergeError(f"{key} is of type {info.dtype} in {tensors.source}; F64, F32, F16 or BF16 can be merged")
    return info


def _compute(plan: MergePlan, step: Step) -> torch.Tensor:
    """The step's tensor, in the dtype of the tensor it starts from. Raises MergeError where it is not finite."""
    import torch

    source = plan.adapter if step.from_adapter else plan.base
    tensor = _finite(source.read(step.source), step.source, source)
    if step.lora is None:
        return tensor
    a, b = (_finite(plan.adapter.read(key), key, plan.adapter).float() for key in step.lora)
    merged = torch.addmm(tensor.float(), b, a).to(tensor.dtype)
    if not torch.isfinite(merged).all():
        raise MergeError(f"merging {step.name} gives values that are not finite in {step.info.dtype}")
    return merged


def _finite(tensor: torch.Tensor, key: str, source: TensorSet) -> torch.Tensor:
    import torch

    if not torch.isfinite(tensor).all():
        raise MergeError(f"{source.source}: {key} has values that are not finite; train or download it again")
    return tensor


def _refuse(what: str, keys: set[str], advice: str) -> None:
    if keys:
        listed = sorted(keys)
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        raise MergeError(f"{what} {', '.join(listed[:_LISTED])}{more}; {advice}")
