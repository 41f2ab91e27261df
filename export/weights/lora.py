"""Style LoRAs that are merged together with an adapter: read in any key style that diffusers converts, strictly."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import MergeError
from export.weights.files import DTYPES, TensorFile, TensorInfo, Weights, all_finite, open_file, pickled
from foundation.files import sha256_file

if TYPE_CHECKING:
    import torch

_NAMES = {torch_name: name for name, (torch_name, _) in DTYPES.items()}
_FLOATS = ("F64", "F32", "F16", "BF16")
_PEFT_CONFIG = "adapter_config.json"
_METADATA = "lora_adapter_metadata"
"""Key under which diffusers keeps peft's configuration in a file's metadata."""

_SCALE_MAX = 100


class LoraTensors(Weights):
    """Converted factors in memory: ``<module>.lora_A.weight`` and ``<module>.lora_B.weight`` by name."""

    def __init__(self, source: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.source = source
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        return TensorInfo(_NAMES[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape), 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some rows of one factor."""
        return self._tensors[name][start:stop].clone()


@dataclass(frozen=True)
class StyleLora:
    """A style LoRA, ready to be merged as ``W + scale * B @ A``; its alphas are already in B.

    digest: sha256 of what was read; modules: module of the backbone -> keys of (A [r, in], B [out, r]) in tensors.
    """

    digest: str
    scale: float
    tensors: LoraTensors
    modules: Mapping[str, tuple[str, str]]


def parse_lora(text: str, architecture: str) -> StyleLora:
    """The LoRA that ``PATH[:SCALE]`` names: a file, a folder or a hub id, and a factor (1 where there is none).

    Raises MergeError, WeightsError, or SourceError where there is no such LoRA.
    """
    from arcflow.sources.hub import resolve_lora

    source, scale = split_scale(text)
    return read_lora(resolve_lora(source), architecture, scale)


def split_scale(text: str) -> tuple[str, float]:
    """(PATH, SCALE) of ``PATH[:SCALE]``. What follows the last colon is a scale only if it is a number."""
    source, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        scale = float(tail)
    except ValueError:
        return text, 1.0
    if not abs(scale) <= _SCALE_MAX:
        raise MergeError(f"the scale of the LoRA {source} is {tail}; allowed: -{_SCALE_MAX} to {_SCALE_MAX}")
    return source, scale


def read_lora(path: Path, architecture: str, scale: float = 1.0) -> StyleLora:
    """Read a LoRA for that architecture ("flux", "qwen") from a safetensors file, or from the one in a folder.

    Keys may be diffusers', peft's, kohya's, or any that diffusers converts. Where peft's configuration is known (in
    the file's metadata, or ``adapter_config.json`` beside peft's own keys), it says the scale of each module.
    Memory: the LoRA, twice while it is converted. Raises MergeError, WeightsError.
    """
    from export.weights.lora_keys import A, B, convert

    file = open_file(_find(path))
    whole = {name: info.dtype for name, info in file.tensors.items() if info.dtype not in _FLOATS}
    whole = {name: dtype for name, dtype in whole.items() if not name.endswith(".alpha")}
    for name, dtype in whole.items():
        raise MergeError(f"{file.path}: {name} is of type {dtype}; allowed: {', '.join(_FLOATS)}")
    tensors = {name: file.read(name) for name in file.tensors}
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise MergeError(f"{file.path}: {name} has values that are not finite; train or download it again")
    factors = convert(tensors, architecture, file.path)
    modules = {key.removesuffix(A): (key, key.removesuffix(A) + B) for key in factors if key.endswith(A)}
    digest, config = sha256_file(file.path), _peft_config(file)
    if _needs_config(file):
        digest = hashlib.sha256(f"{digest}\0{sha256_file(file.path.with_name(_PEFT_CONFIG))}".encode()).hexdigest()
    if config is not None:
        if any(name.endswith(".alpha") for name in tensors):
            raise MergeError(f"{file.path} has both alphas and peft's configuration; keep one of them")
        for module, (a, b) in modules.items():
            factor = _peft_scale(config, module, factors[a].shape[0], file.path)
            if factor != 1.0:
                factors[b] = factors[b].float() * factor
    return StyleLora(digest, scale, LoraTensors(file.path, factors), modules)


def _find(path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            what = f"; {told}" if (told := pickled(path)) and not files else ""
            raise MergeError(f"{path} must hold one .safetensors file, or name the file itself; found: {found}{what}")
        return files[0]
    if path.suffix != ".safetensors":
        raise MergeError(f"the LoRA {path} is no .safetensors file; other formats are not read (they may hold code)")
    return path


def _peft_config(file: TensorFile) -> Mapping[str, Any] | None:
    """peft's configuration of a LoRA, from the file's metadata or, for peft's own keys, from the file beside it."""
    from export.sources.configs import read_json
    from export.weights.lora_keys import PREFIX

    text = file.metadata.get(_METADATA)
    if text:
        try:
            packed = json.loads(text)
            return {key.removeprefix(PREFIX): value for key, value in packed.items()}
        except (ValueError, AttributeError) as error:
            raise MergeError(f"{file.path}: its metadata {_METADATA} is damaged ({error}); save it again") from error
    if not _needs_config(file):
        return None
    beside = file.path.with_name(_PEFT_CONFIG)
    if not beside.is_file():
        raise MergeError(
            f"{file.path} has the keys of a folder that peft saved, and {_PEFT_CONFIG}, which gives its scale, is not "
            "beside it; copy that file from where the LoRA was trained or downloaded"
        )
    return read_json(beside)


def _needs_config(file: TensorFile) -> bool:
    """Whether the file has peft's own keys for a diffusers model and names no scales itself."""
    from export.weights.lora_keys import is_peft

    return _METADATA not in file.metadata and is_peft(file.tensors)


def _peft_scale(config: Mapping[str, Any], module: str, rank: int, source: Path) -> float:
    """What peft multiplies the module's ``B @ A`` by."""
    from peft.utils.other import get_pattern_key

    if config.get("use_dora"):
        raise MergeError(f"{source} is a DoRA, which cannot be merged; use a LoRA")
    values = []
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = config.get(pattern) or {}
        values.append(patterns.get(get_pattern_key(list(patterns), module), config.get(key)))
    r, alpha = values
    if not isinstance(alpha, int | float) or r != rank:
        raise MergeError(
            f"{source}: its peft configuration says rank {r} and alpha {alpha} for {module}, which has rank {rank}; "
            "download or save it again"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
