"""The tokenizers of a pipeline folder, as a bundle carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engines.schema import TokenizerSpec
from export.errors import ExportError
from export.sources.configs import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

_FAST = "tokenizer.json"
_BYTE_PAIRS = ("vocab.json", "merges.txt")
"""What published folders of CLIP and Qwen2 hold instead."""


@dataclass(frozen=True)
class TokenizerFile:
    """The content of a ``tokenizer.json``, the very bytes that were checked, and what the manifest says of it."""

    source: bytes
    spec: TokenizerSpec


def tokenizer_file(
    name: str,
    folder: Path,
    max_tokens: int,
    template: str = "",
    drop: int = 0,
    pad: Literal["max", "longest"] = "max",
) -> TokenizerFile:
    """The tokenizer in ``folder`` for the bundle's network ``name``.

    The folder holds ``tokenizer_config.json`` and either ``tokenizer.json`` or ``vocab.json`` and ``merges.txt``, which
    transformers then converts. max_tokens, template, drop, pad: as TokenizerSpec has them.

    Raises ExportError where a file is missing or damaged, where no padding token of the vocabulary is named, and where
    the template's beginning does not make ``drop`` tokens.
    """
    config = read_json(folder / "tokenizer_config.json")
    source = _source(folder)
    tokenizer = _load(source, folder)
    tokenizer.no_padding()  # A file may ask for it; the padding would count as template.
    tokenizer.no_truncation()
    padding = config.get("pad_token")
    token = padding.get("content") if isinstance(padding, dict) else padding
    pad_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if pad_id is None:
        raise ExportError(
            f"{folder}/tokenizer_config.json names no padding token of the vocabulary (pad_token: {padding})"
        )
    count = len(tokenizer.encode(template.partition("{}")[0], add_special_tokens=False).ids)
    if count != drop:
        raise ExportError(
            f"the tokenizer in {folder} makes {count} tokens of the template's beginning, {drop} were expected; "
            "use the tokenizer that the pipeline was published with"
        )
    spec = TokenizerSpec(
        file=f"tokenizers/{name}.json", max_tokens=max_tokens, pad_id=pad_id, template=template, drop=drop, pad=pad
    )
    return TokenizerFile(source, spec)


def token_ids(file: TokenizerFile, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(ids, mask), each int64 [prompts, tokens], padded on the right and cut as the tokenizer's spec says."""
    import torch
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_buffer(file.source)
    tokenizer.enable_truncation(file.spec.max_tokens)
    length = file.spec.max_tokens if file.spec.pad == "max" else None
    tokenizer.enable_padding(pad_id=file.spec.pad_id, length=length)
    template = file.spec.template or "{}"
    encoded = tokenizer.encode_batch([template.replace("{}", prompt) for prompt in prompts])
    ids = torch.tensor([one.ids for one in encoded], dtype=torch.int64)
    return ids, torch.tensor([one.attention_mask for one in encoded], dtype=torch.int64)


def _source(folder: Path) -> bytes:
    """The folder's ``tokenizer.json``, or the one that transformers makes of its other files."""
    if (folder / _FAST).is_file():
        return (folder / _FAST).read_bytes()
    missing = [file for file in _BYTE_PAIRS if not (folder / file).is_file()]
    if missing:
        raise ExportError(
            f"{folder} has neither {_FAST} nor {' and '.join(_BYTE_PAIRS)}; download or save the tokenizer again"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return str(tokenizer.backend_tokenizer.to_str()).encode()
    except Exception as error:  # Damaged files surface as whatever the library meets first.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the tokenizer in {folder} cannot be read ({reason}); download or save it again") from error


def _load(source: bytes, folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(source)
    except Exception as error:  # The library raises nothing more specific.
        raise ExportError(f"{folder / _FAST} is damaged ({error}); download or save it again") from error
