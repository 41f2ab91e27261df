"""Merging an adapter, and style LoRAs, into a base: planned from the headers, computed where the weights are read.

Everything that can be known from the headers is checked before the first tensor is read: that every LoRA pair finds
its weight, that no tensor is unknown or missing, every shape and type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import MergeError
from export.sources.configs import read_json
from export.weights.files import TensorInfo, TensorSet, Weights, open_folder, tensor_set
from export.weights.merged import MergedWeights, Pair, Step
from export.weights.parents import UNREAD, Parents

if TYPE_CHECKING:
    from torch import nn

    from arcflow.adapter import AdapterConfig, Policy
    from arcflow.students import Coverage
    from export.weights.lora import StyleLora

_MERGEABLE = ("F64", "F32", "F16", "BF16")
_VELOCITY_HEAD = "proj_out"
"""The teacher's last linear, which the momentum head replaces."""

_GEOMETRY = (
    "attention_head_dim",
    "axes_dims_rope",
    "guidance_embeds",
    "in_channels",
    "joint_attention_dim",
    "num_attention_heads",
    "num_layers",
    "num_single_layers",
    "pooled_projection_dim",
)
"""Keys of a backbone's configuration in which an adapter and its base must agree where both name them."""

_LISTED = 5
"""How many of a list of wrong keys a message names."""

_OTHER_BASE = "use the base model that the adapter was trained on"
_OTHER_HEAD = (
    "its config.json gives another number of modes (num_gaussians) than its weights have: they belong to two adapters, "
    "or one of them was edited; download or save the adapter again"
)


@dataclass(frozen=True)
class MergedStudent:
    """A student whose parts were found to fit from the headers alone. Its weights are computed when they are read.

    parents: the digests of what is merged, UNREAD until :meth:`digested`; modes: K; config: the backbone's diffusers
    configuration; architecture: its name ("flux", "qwen"); policy: how the adapter says it is sampled; transformer,
    adapter, loras: what it is merged from, two folders and the style LoRAs.
    """

    weights: MergedWeights
    parents: Parents
    modes: int
    config: Mapping[str, Any]
    architecture: str
    policy: Policy
    transformer: Path
    adapter: Path
    loras: tuple[StyleLora, ...]

    @property
    def digest(self) -> str:
        """The student's identity."""
        return self.parents.digest

    def digested(self, base: str, adapter: str) -> MergedStudent:
        """The same with the digests of the base's ``transformer`` folder and of the adapter's folder."""
        return replace(self, parents=Parents(base, adapter, self.parents.loras))


def merge(
    transformer: Path, adapter: Path, loras: Sequence[StyleLora] = (), coverage: Coverage = "whole"
) -> MergedStudent:
    """Check from the headers that adapter and LoRAs fit the base's ``transformer`` folder. No weight is read.

    coverage: which LoRA pairs the adapter must have.

    A style LoRA on the teacher's velocity head is added to the means of every mode: the gates sum to one, so the
    velocity at a segment's start changes by just what the teacher's would. One on ``norm_out`` is added to the
    adapter's own.

    Raises MergeError (keys, shapes, types), WeightsError (a damaged file), AdapterError (a damaged adapter, missing
    pairs).
    """
    from arcflow.adapter import PREFIX, read_config, split_keys
    from arcflow.adapter import WEIGHTS_FILE as ADAPTER_WEIGHTS
    from arcflow.students import architecture_of_adapter, check_coverage

    config = read_config(adapter)
    kind = architecture_of_adapter(config.class_name)
    backbone = read_json(transformer / "config.json")
    _check_kin(backbone, config, transformer)
    given = tensor_set(adapter / ADAPTER_WEIGHTS)
    base = open_folder(transformer)
    keys = {key.removeprefix(PREFIX): key for key in given}
    if len(keys) != len(given):
        raise MergeError(f"{given.source} has keys both with and without the prefix {PREFIX!r}; keep one of each")
    lora, whole = split_keys(keys, given.source)
    student = _weightless(backbone, config, kind.NAME)
    steps = _plan(base, given, lora, whole, {name: tuple(t.shape) for name, t in student.state_dict().items()})
    check_coverage(lora, student, kind, coverage)
    for style in loras:
        steps = _with_lora(steps, style, config.modes)
    return MergedStudent(
        weights=MergedWeights(base.source, steps),
        parents=Parents(UNREAD, UNREAD, tuple((style.digest, style.scale) for style in loras)),
        modes=config.modes,
        config=backbone,
        architecture=kind.NAME,
        policy=config.policy,
        transformer=transformer,
        adapter=adapter,
        loras=tuple(loras),
    )


def _check_kin(backbone: Mapping[str, Any], adapter: AdapterConfig, transformer: Path) -> None:
    """Reject a base of another kind or size than the adapter's, where their configurations tell."""
    found, wanted = backbone.get("_class_name"), adapter.class_name.removeprefix("Arc")
    if found != wanted:
        raise MergeError(f"{transformer} holds a {found}, the adapter is for a {wanted}; {_OTHER_BASE}")
    for key in _GEOMETRY:
        own, other = backbone.get(key), adapter.backbone.get(key)
        if own is not None and other is not None and own != other:
            raise MergeError(f"{transformer}: {key} is {own}, the adapter was trained with {other}; {_OTHER_BASE}")


def _weightless(config: Mapping[str, Any], adapter: AdapterConfig, architecture: str) -> nn.Module:
    """The student's module, without memory."""
    import torch

    from arcflow.students import build_student

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            return build_student(plain, adapter.modes, architecture)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise MergeError(f"the base's transformer/config.json does not describe a backbone: {error}") from error


def _plan(
    base: TensorSet, adapter: TensorSet, lora: Mapping[str, tuple[str, str]], whole: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, Step]:  # fmt: skip
    """The student's tensors from base and adapter, in the order of ``wanted``.

    lora: keys of (A, B) by module; whole: the adapter's keys of what it replaces, by name in its file.
    """
    from arcflow.adapter import student_names

    sources = student_names(whole)
    own = {name for name in wanted if name not in sources}
    dropped = {f"{_VELOCITY_HEAD}.{part}" for part in ("weight", "bias")}
    _refuse(f"{base.source} lacks", own - set(base), _OTHER_BASE)
    _refuse(f"{base.source} has unknown keys:", set(base) - set(wanted) - dropped, _OTHER_BASE)
    homeless = {module for module in lora if f"{module}.weight" not in own or len(wanted[f"{module}.weight"]) != 2}
    _refuse("LoRA pairs of the adapter find no weight in the base:", homeless, _OTHER_BASE)
    steps: dict[str, Step] = {}
    for name, shape in wanted.items():
        if name in sources:
            key = sources[name]
            other_modes = name.startswith(f"{_VELOCITY_HEAD}.") and adapter[key].shape[1:] == shape[1:]
            info = _expect(adapter, key, shape, _OTHER_HEAD if other_modes else _OTHER_BASE)
            steps[name] = Step(name, adapter, key, info)
            continue
        pair = lora.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        pairs = (Pair(adapter, *pair),) if pair else ()
        for factors in pairs:
            _check_pair(factors, shape, _OTHER_BASE)
        steps[name] = Step(name, base, name, _expect(base, name, shape), pairs)
    return steps


def _with_lora(steps: Mapping[str, Step], lora: StyleLora, modes: int) -> dict[str, Step]:
    """The same steps with a style LoRA's pairs added."""
    advice = "use a LoRA that was trained for this base model"
    homes = {module: f"{module}.weight" for module in lora.modules}
    if _VELOCITY_HEAD in homes:
        homes[_VELOCITY_HEAD] = f"{_VELOCITY_HEAD}.means.weight"
    fits = {module for module, home in homes.items() if home in steps and len(steps[home].info.shape) == 2}
    _refuse(f"modules of the LoRA {lora.tensors.source} find no weight in the base:", set(homes) - fits, advice)
    added = dict(steps)
    for module, (a, b) in lora.modules.items():
        repeat = modes if module == _VELOCITY_HEAD else 1
        pair = Pair(lora.tensors, a, b, lora.scale, repeat, style=True)
        step = added[homes[module]]
        _check_pair(pair, step.info.shape, advice)
        added[step.name] = Step(step.name, step.weights, step.key, step.info, (*step.pairs, pair))
    return added


def _check_pair(pair: Pair, shape: tuple[int, ...], advice: str) -> None:
    """Reject factors that do not multiply to ``shape`` [rows, columns]."""
    from arcflow.adapter import factor_fault

    rows, columns = shape
    a, b = pair.weights[pair.a].shape, pair.weights[pair.b].shape
    fault = factor_fault(a, b, (rows // pair.repeat, columns))
    if fault is not None:
        raise MergeError(
            f"{pair.weights.source}: {pair.a} {list(a)} and {pair.b} {list(b)} {fault}; train or save it again"
        )
    rank = a[0]
    _expect(pair.weights, pair.a, (rank, columns), advice)
    _expect(pair.weights, pair.b, (rows // pair.repeat, rank), advice)


def _expect(tensors: Weights, key: str, shape: tuple[int, ...], advice: str = _OTHER_BASE) -> TensorInfo:
    info = tensors[key]
    if info.shape != shape:
        raise MergeError(f"{key} has shape {list(info.shape)} in {tensors.source}, {list(shape)} is needed; {advice}")
    if info.dtype not in _MERGEABLE:
        raise MergeError(f"{key} is of type {info.dtype} in {tensors.source}; F64, F32, F16 or BF16 can be merged")
    return info


def _refuse(what: str, keys: Iterable[str], advice: str) -> None:
    listed = sorted(keys)
    if listed:
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        raise MergeError(f"{what} {', '.join(listed[:_LISTED])}{more}; {advice}")
