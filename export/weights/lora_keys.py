"""Key styles of LoRA files: what may be in one, its alphas, and its way to diffusers' names by diffusers' own code.

Everything here is strict where diffusers is lenient: its converters drop what they do not know and warn; here that is
an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcflow.adapter import factor_fault
from export.errors import MergeError
from export.reporting import quiet

if TYPE_CHECKING:
    from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "transformer."
_ALPHA = ".alpha"
_HALVES = ((".lora_down.weight", ".lora_up.weight"), (A, B), (".down.weight", ".up.weight"))
"""Ends of the keys of A and B: of kohya and ComfyUI, of peft and diffusers, of XLabs and old diffusers."""

_PEFT = "base_model.model."
_COMFYUI = "diffusion_model."
_TEXT_PARTS = ("lora_te", "text_encoder", "text_model", "lora_clip", "lora_t5", "clip_l.", "t5xxl.", "te1_", "te2_")
_LISTED = 5


def convert(tensors: Mapping[str, Tensor], architecture: str, source: Path) -> dict[str, Tensor]:
    """Factors by diffusers' names, ``<module>.lora_A.weight`` and ``.lora_B.weight``; alphas are multiplied into B.

    tensors: the file's, in any style that diffusers converts for that architecture. Raises MergeError.
    """
    plain = {key.replace(".default.weight", ".weight"): tensor for key, tensor in tensors.items()}
    pairs = _pairs(plain, source)
    folded = _fold_alphas(plain, pairs, source)
    converted = _by_diffusers(_from_comfyui(_from_peft(folded), architecture), architecture, source)
    found = {_bare(key): tensor for key, tensor in converted.items() if not key.endswith(_ALPHA)}
    odd = [key for key in found if not key.endswith((A, B))]
    if odd:
        raise MergeError(f"{source}: no module of the base is known for {_listed(odd)}; {_ADVICE}")
    before = sum(plain[b].shape[0] for _, b in pairs.values())
    after = sum(tensor.shape[0] for key, tensor in found.items() if key.endswith(B))
    if before != after or any(key.removesuffix(B) + A not in found for key in found if key.endswith(B)):
        raise MergeError(f"{source}: {before - after} of {before} rows belong to no module that is known; {_ADVICE}")
    return found


_ADVICE = "use a LoRA that was trained for this base model"


def _pairs(tensors: Mapping[str, Tensor], source: Path) -> dict[str, tuple[str, str]]:
    """Name of each module as the file has it -> keys of (A, B). Raises MergeError for whatever else there is."""
    text = [key for key in tensors if key.startswith(_TEXT_PARTS)]
    if text:
        raise MergeError(
            f"{source} changes text encoders as well ({len(text)} keys, {text[0]} the first), which cannot be merged; "
            "use a LoRA of the transformer alone, or remove these keys from it"
        )
    pairs, odd = {}, []
    for key in tensors:
        halves = next((pair for pair in _HALVES if key.endswith(pair)), None)
        if halves is None:
            odd += [key] if not key.endswith(_ALPHA) else []
            continue
        stem = key.removesuffix(halves[0]).removesuffix(halves[1])
        pairs[stem] = (stem + halves[0], stem + halves[1])
    if odd:
        raise MergeError(
            f"{source} has more than LoRA pairs: {_listed(odd)}; DoRA, LoHa, LoKr, and changes of norms and biases "
            "cannot be merged"
        )
    if not pairs:
        raise MergeError(f"{source} has no LoRA pairs; give a LoRA's safetensors file")
    half = [key for pair in pairs.values() for key in pair if key not in tensors]
    if half:
        raise MergeError(f"{source} lacks {_listed(half)}, the other half of a LoRA pair; download or save it again")
    flat = [key for pair in pairs.values() for key in pair if tensors[key].ndim != 2]
    if flat:
        raise MergeError(f"{source}: {_listed(flat)} is no matrix; only LoRA pairs of linears can be merged")
    for a, b in pairs.values():
        shapes = tuple(tensors[a].shape), tuple(tensors[b].shape)
        fault = factor_fault(*shapes)
        if fault is not None:
            raise MergeError(
                f"{source}: {a} {list(shapes[0])} and {b} {list(shapes[1])} {fault}; train or save it again"
            )
    return pairs


def _fold_alphas(
    tensors: Mapping[str, Tensor], pairs: Mapping[str, tuple[str, str]], source: Path
) -> dict[str, Tensor]:
    """The tensors with alpha / rank multiplied into B in float32, and every alpha set to its rank.

    diffusers' converters round that product to the file's type, and leave it out for the last layer.
    """
    import torch

    folded = dict(tensors)
    for key in (key for key in tensors if key.endswith(_ALPHA)):
        pair, alpha = pairs.get(key.removesuffix(_ALPHA)), tensors[key]
        if pair is None:
            raise MergeError(f"{source}: {key} belongs to no LoRA pair; download or save it again")
        if alpha.numel() != 1:
            raise MergeError(f"{source}: {key} has shape {list(alpha.shape)}; it must be one number")
        a, b = pair
        rank = tensors[a].shape[0]
        if float(alpha) != rank:
            folded[b] = tensors[b].float() * (float(alpha) / rank)
        folded[key] = torch.tensor(float(rank))
    return folded


def is_peft(keys: Iterable[str]) -> bool:
    """Whether peft itself wrote these keys, for a model of diffusers."""
    listed = list(keys)
    return all(key.startswith(_PEFT) for key in listed) and any("transformer_blocks." in key for key in listed)


def _from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys that peft itself wrote, under diffusers' prefix; others as they are."""
    if is_peft(tensors):
        return {PREFIX + key.removeprefix(_PEFT): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def _from_comfyui(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """FLUX keys under ComfyUI's prefix in a style that diffusers converts, whichever names their halves have.

    It takes the original model's module names with down and up alone, and its own without that prefix alone.
    """
    if architecture != "flux" or not all(key.startswith(_COMFYUI) for key in tensors):
        return tensors
    own = any("transformer_blocks." in key for key in tensors)
    prefix, halves = (PREFIX, (A, B)) if own else (_COMFYUI, _HALVES[0])
    renamed = {}
    for key, tensor in tensors.items():
        stem, half = _split(key)
        renamed[prefix + stem.removeprefix(_COMFYUI) + (_ALPHA if half is None else halves[half])] = tensor
    return renamed


def _split(key: str) -> tuple[str, int | None]:
    """(what is before the half's name, 0 for A and 1 for B); None for an alpha."""
    for pair in _HALVES:
        for number, end in enumerate(pair):
            if key.endswith(end):
                return key.removesuffix(end), number
    return key.removesuffix(_ALPHA), None


def _by_diffusers(tensors: dict[str, Tensor], architecture: str, source: Path) -> dict[str, Tensor]:
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin, QwenImageLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    mixin: Any = {"flux": FluxLoraLoaderMixin, "qwen": QwenImageLoraLoaderMixin}[architecture]
    try:
        with quiet("diffusers"):  # What it would warn of is checked here.
            converted: dict[str, Tensor] = mixin.lora_state_dict(tensors)
            if not all(key.endswith((A, B, _ALPHA)) for key in converted):
                converted = convert_unet_state_dict_to_peft(converted)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        AssertionError,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise MergeError(
            f"diffusers cannot convert the keys of {source} for {architecture} ({reason}); {_ADVICE}"
        ) from error
    return converted


def _bare(key: str) -> str:
    """Without the prefix, of which diffusers' converters may give none, one or two."""
    while key.startswith(PREFIX):
        key = key.removeprefix(PREFIX)
    return key


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(sorted(keys)[:_LISTED]) + more
