"""Adapters: the released file format of ArcFlow students, read and written strictly.

A folder with ``config.json`` (``_class_name``, ``num_gaussians``, ``logweights_channels``, the backbone's diffusers
configuration) and ``diffusion_pytorch_model.safetensors``: LoRA pairs ``<module>.lora_A.weight`` [r, in] and
``<module>.lora_B.weight`` [out, r] (scale 1), and whole tensors ``norm_out.linear.*`` and ``proj_out_means.*``,
``proj_out_logweights.*``, ``proj_out_loggamma.*`` with mode-major rows. Keys may carry the prefix ``transformer.``.

Our own adapters also name their sampling policy, under ``arcflow_policy`` of the configuration and ``policy_config``
of the weights file's metadata; the published ones leave it to their pipeline (see :mod:`arcflow.policy`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arcflow.architectures.head import PATCH_POSITIONS
from arcflow.errors import AdapterError, RecipeError
from arcflow.policy import METADATA_KEY, read_policy
from arcflow.policy import Policy as Policy
from arcflow.students import HEAD_PARTS, Coverage, Student, architecture_of_adapter, check_coverage
from foundation.files import atomic_directory

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PREFIX = "transformer."
_WHOLE = tuple(f"{name}.{part}" for name in ("norm_out.linear", *HEAD_PARTS) for part in ("weight", "bias"))
_WANTED = "A must be [rank, inputs] and B [outputs, rank]"
_LORA_A, _LORA_B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter says of itself.

    class_name; modes (K); backbone: what is left of ``config.json``, the backbone's diffusers configuration as far as
    it is given (build the student from the base's own); policy: how to sample, and policy_source: whether "config",
    "metadata" or nothing ("default") named it.
    """

    class_name: str
    modes: int
    backbone: dict[str, Any]
    policy: Policy
    policy_source: str


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory.

    lora: module name -> (A [r, in], B [out, r]); whole: tensors that replace the backbone's, by file name.
    """

    config: AdapterConfig
    lora: dict[str, tuple[Tensor, Tensor]]
    whole: dict[str, Tensor] = field(repr=False)


def read_config(folder: Path) -> AdapterConfig:
    """Read and check ``config.json`` and, where it names no policy, the metadata of the weights file.

    Raises AdapterError when it is missing, no JSON, lacks a key, or is of an unknown class.
    """
    path = folder / CONFIG_FILE
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise AdapterError(f"no adapter at {folder}: {CONFIG_FILE} is missing; give a folder that has it") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"cannot read {path}: {error}; download or save the adapter again") from error
    if not isinstance(data, dict):
        raise AdapterError(f"{path} is not a JSON object; download or save the adapter again")
    for key in ("_class_name", "num_gaussians", "logweights_channels"):
        if key not in data:
            raise AdapterError(f"{path} lacks {key!r}: this is not the configuration of an ArcFlow adapter")
    modes = data["num_gaussians"]
    if not isinstance(modes, int) or modes < 1:
        raise AdapterError(f"{path}: num_gaussians is {modes!r}; it must be a whole number of 1 or more")
    if data["logweights_channels"] != PATCH_POSITIONS:
        raise AdapterError(
            f"{path}: logweights_channels is {data['logweights_channels']!r}; only {PATCH_POSITIONS} is supported"
        )
    foreign = ("num_gaussians", "logweights_channels", "arcflow_policy")
    backbone = {k: v for k, v in data.items() if k not in foreign and not k.startswith("_")}
    class_name = str(data["_class_name"])
    try:
        arch = architecture_of_adapter(class_name)
    except RecipeError as error:
        raise AdapterError(f"{path}: {error}") from error
    own = data.get("arcflow_policy")
    metadata = _metadata(folder / WEIGHTS_FILE) if own is None else None
    policy, source = read_policy(own, metadata, arch, path if own is not None else folder / WEIGHTS_FILE)
    return AdapterConfig(class_name, modes, backbone, policy, source)


def read_adapter(folder: Path) -> Adapter:
    """Read a whole adapter, strictly: unknown keys, half pairs, missing tensors and non-finite values are errors.

    Tensors are returned in the file's dtype. Raises AdapterError.
    """
    config = read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise AdapterError(f"no adapter at {folder}: {WEIGHTS_FILE} is missing; give a folder that has it")
    with _opened(path) as handle:
        names = list(handle.keys())
        tensors = {name.removeprefix(PREFIX): handle.get_tensor(name) for name in names}
    if len(tensors) != len(names):
        raise AdapterError(f"{path} has keys both with and without the prefix {PREFIX!r}; keep one of each")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: {key} has values that are not finite; train or download the adapter again")
    lora, whole = split_keys(tensors, path)
    return Adapter(config, lora, whole)


def split_keys(tensors: Mapping[str, Any], path: Path) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Sort a file's entries (tensors, or anything keyed as they are) into LoRA pairs and whole tensors.

    Keys must already be without prefix. Raises AdapterError, listing what is unknown or missing.
    """
    missing = [key for key in _WHOLE if key not in tensors]
    if missing:
        raise AdapterError(f"{path} lacks {', '.join(missing)}: this is not a whole ArcFlow adapter")
    whole = {key: tensors[key] for key in _WHOLE}
    lora: dict[str, tuple[Any, Any]] = {}
    for key in tensors:
        if key in whole:
            continue
        if key.endswith(_LORA_A):
            module = key.removesuffix(_LORA_A)
            if module + _LORA_B not in tensors:
                raise AdapterError(f"{path}: {key} has no matching {module + _LORA_B}")
            lora[module] = (tensors[key], tensors[module + _LORA_B])
        elif not key.endswith(_LORA_B):
            raise AdapterError(
                f"{path}: unknown key {key!r}; LoRA pairs, norm_out and the three head linears are known"
            )
        elif key.removesuffix(_LORA_B) + _LORA_A not in tensors:
            raise AdapterError(f"{path}: {key} has no matching {key.removesuffix(_LORA_B) + _LORA_A}")
    return lora, whole


def save_adapter(
    student: Student,
    backbone_config: Mapping[str, Any],
    policy: Policy,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    trained: Mapping[str, Tensor] | None = None,
    card: str | None = None,
) -> None:
    """Write the student's trained tensors in the released format, atomically, as ``dtype``.

    backbone_config: the teacher's diffusers configuration (keys that start with "_" are left out); trained: the tensors
    by name where they are not the student's own, which may be in parts on several processes; card: the text of a model
    card, which no reader of adapters looks at.
    """
    trained = trained_tensors(student) if trained is None else trained
    tensors = {k: v.detach().cpu().to(dtype).contiguous().clone() for k, v in trained.items()}
    config = {
        "_class_name": student.architecture.ADAPTER_CLASS,
        "num_gaussians": student.recipe.modes,
        "logweights_channels": PATCH_POSITIONS,
        "arcflow_policy": asdict(policy),
        **{k: v for k, v in backbone_config.items() if not k.startswith("_")},
    }
    # One key alone: safetensors writes several in any order, and equal adapters must be equal files.
    metadata = {METADATA_KEY: json.dumps(asdict(policy))}
    with atomic_directory(folder) as temporary:
        (temporary / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, temporary / WEIGHTS_FILE, metadata=metadata)
        if card is not None:
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")


def trained_tensors(student: Student) -> dict[str, Tensor]:
    """The student's trained tensors (not copies) by their names in the file."""
    backbone: Any = student.backbone
    tensors: dict[str, Tensor] = {}
    for module, layer in student.lora_layers():
        tensors[module + _LORA_A] = layer.lora_A["default"].weight  # type: ignore[index,union-attr]
        tensors[module + _LORA_B] = layer.lora_B["default"].weight  # type: ignore[index,union-attr]
    for part in ("weight", "bias"):
        tensors[f"norm_out.linear.{part}"] = getattr(backbone.norm_out.linear, part)
        for name, attribute in HEAD_PARTS.items():
            tensors[f"{name}.{part}"] = getattr(getattr(backbone.proj_out, attribute), part)
    return tensors


@torch.no_grad()
def merge_into(
    student_backbone: nn.Module,
    teacher_weights: Mapping[str, Tensor],
    adapter: Adapter,
    coverage: Coverage = "whole",
    assign: bool = False,
) -> nn.Module:
    """Fill a backbone made by :func:`arcflow.students.build_student` with ``W + B @ A`` and the whole tensors.

    Computed in float32 where the weights are. assign: take the tensors themselves, for a backbone without memory (on
    the meta device); weights that the adapter leaves alone are then shared with the teacher. With the teacher's on the
    meta device as well, nothing is computed and all else is checked. Raises AdapterError where a LoRA pair finds no
    weight, a layer finds no pair ("whole"), a shape differs, or a result is not finite.
    """
    merged = {k: v for k, v in teacher_weights.items() if not k.startswith("proj_out.")}
    for module, (a, b) in adapter.lora.items():
        key = f"{module}.weight"
        if key not in merged:
            raise AdapterError(
                f"the adapter's {module} is no linear of this backbone; use the backbone it was trained on"
            )
        fault = factor_fault(tuple(a.shape), tuple(b.shape), tuple(merged[key].shape))
        if fault is not None:
            raise AdapterError(f"the adapter's LoRA factors of {module} {fault}; train or save the adapter again")
        _check_shape(module, (b.shape[0], a.shape[1]), tuple(merged[key].shape))
        weight = merged[key]
        a, b = (factor.to(weight.device, torch.float32) for factor in (a, b))
        merged[key] = (weight.float() + b @ a).to(weight.dtype)
        if not merged[key].is_meta and not torch.isfinite(merged[key]).all():
            raise AdapterError(
                f"merging {module} gives values that are not finite; train or download the adapter again"
            )
    check_coverage(adapter.lora, student_backbone, architecture_of_adapter(adapter.config.class_name), coverage)
    whole = student_names(adapter.whole)
    merged.update({k: v.to(next(iter(merged.values()))) for k, v in whole.items()} if assign else whole)
    own = student_backbone.state_dict()
    for key, tensor in own.items():
        if key not in merged:
            raise AdapterError(f"{key} is in neither the backbone nor the adapter; use the backbone it was trained on")
        _check_shape(key, tuple(merged[key].shape), tuple(tensor.shape))
    student_backbone.load_state_dict(merged, strict=True, assign=assign)
    return student_backbone


def student_names(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Whole tensors under the names of a student's state dict (``proj_out_means.*`` -> ``proj_out.means.*``)."""
    renamed = {}
    for key, value in whole.items():
        module, _, part = key.rpartition(".")
        renamed[f"proj_out.{HEAD_PARTS[module]}.{part}" if module in HEAD_PARTS else key] = value
    return renamed


def factor_fault(a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...] | None = None) -> str | None:
    """What is wrong with factors of shapes ``a`` and ``b`` in themselves, and what they must be; None if nothing is.

    weight: [outputs, inputs] of the layer, where it is known: without it, square factors are not doubted. Factors that
    make a weight of another shape are no fault of theirs (None): they belong to another base.
    """
    if len(a) != 2 or len(b) != 2:
        return f"are no two matrices; {_WANTED}"
    if weight is not None and (a, b) == ((a[0], weight[1]), (weight[0], a[0])):
        return None
    turned = a[1] == b[0] and a[1] < min(a[0], b[1])
    if turned and (weight is None or sorted((a[0], b[1])) == sorted(weight)) and (weight or a[0] != b[1]):
        return f"are swapped or transposed; {_WANTED}"
    if a[0] != b[1]:
        return f"differ in rank ({a[0]} and {b[1]}); {_WANTED}"
    return None


def _check_shape(key: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if given != wanted:
        raise AdapterError(f"{key} has shape {list(given)} in the adapter but {list(wanted)} in the backbone")


def _metadata(path: Path) -> Mapping[str, str] | None:
    """The metadata of a safetensors file, from its header alone; None where there is no file."""
    if not path.is_file():
        return None
    with _opened(path) as handle:
        metadata: Mapping[str, str] | None = handle.metadata()
    return metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises AdapterError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or truncated ({error}); download or save it again") from error
