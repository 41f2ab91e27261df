"""The tokenizers of a FLUX pipeline folder, as a bundle carries them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.manifest import TokenizerSpec
from export.configs import read_json
from export.errors import ExportError


@dataclass(frozen=True)
class TokenizerFile:
    """A ``tokenizer.json`` on disk and what the manifest says of it."""

    source: Path
    spec: TokenizerSpec


def tokenizer_file(name: str, folder: Path, max_tokens: int) -> TokenizerFile:
    """The tokenizer in ``folder`` (``tokenizer.json``, ``tokenizer_config.json``) for the bundle's network ``name``.

    Raises ExportError where a file is missing or damaged, or names no padding token of its vocabulary.
    """
    from tokenizers import Tokenizer

    source = folder / "tokenizer.json"
    config = read_json(folder / "tokenizer_config.json")
    if not source.is_file():
        raise ExportError(f"{source} is missing: only fast tokenizers can be bundled; save the tokenizer anew")
    try:
        tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:  # The library raises nothing more specific.
        raise ExportError(f"{source} is damaged ({error}); download or save it again") from error
    pad = config.get("pad_token")
    token = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if pad_id is None:
        raise ExportError(f"{folder}/tokenizer_config.json names no padding token of the vocabulary (pad_token: {pad})")
    return TokenizerFile(source, TokenizerSpec(file=f"tokenizers/{name}.json", max_tokens=max_tokens, pad_id=pad_id))
