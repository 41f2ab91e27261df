"""Prompts to token ids, by the ``tokenizers`` package and the bundle's own ``tokenizer.json``.

What a user types never yields a special token: ``<|endoftext|>`` or ``</s>`` in a prompt is spelt out like any other
text. Special tokens are therefore taken out of the tokenizer's sight (not only flagged: a unigram model, T5's, finds
them in its vocabulary whatever the flags); start and end are put in by the post-processor, which knows them by id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError

if TYPE_CHECKING:
    from engines.manifest import TokenizerSpec

_UNTYPEABLE = "\0special\0"
"""Put before a special piece's name in the vocabulary; a prompt cannot hold it (requests with NUL are refused)."""


@dataclass(frozen=True)
class Truncation:
    """A prompt was longer than the encoder takes: ``dropped`` is the text at its end that had no effect."""

    prompt: str
    tokenizer: str
    max_tokens: int
    dropped: str

    def __str__(self) -> str:
        return (
            f"the {self.tokenizer} encoder takes {self.max_tokens} tokens; "
            f"this end of the prompt is unused: {self.dropped!r}"
        )


@dataclass(frozen=True)
class TokenIds:
    """ids: int64 [prompts, max_tokens], padded; truncations: one for each prompt that did not fit."""

    ids: NDArray[np.int64]
    truncations: tuple[Truncation, ...]


class PromptTokenizer:
    """One encoder's tokenizer: prompts to ids of a fixed length, start and end tokens included.

    name: for messages, "clip" or "t5". data: the bytes of its tokenizer.json.
    Raises BackendError where these bytes are not a tokenizer.
    """

    def __init__(self, name: str, data: bytes, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        self.name = name
        self._spec = spec
        try:
            self._tokenizer = Tokenizer.from_str(_without_special_text(data))
        except Exception as error:  # The package raises bare Exception for a file that it cannot read.
            raise BackendError(f"the {name} tokenizer {spec.file!r} cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec.max_tokens)

    def __call__(self, prompts: Sequence[str]) -> TokenIds:
        """Encode ``prompts``; the end token stays when a prompt is cut, as transformers does it."""
        ids = np.full((len(prompts), self._spec.max_tokens), self._spec.pad_id, dtype=np.int64)
        truncations = []
        for row, prompt in enumerate(prompts):
            encoding = self._tokenizer.encode(prompt)
            ids[row, : len(encoding.ids)] = encoding.ids
            if encoding.overflowing:
                dropped = prompt[_first_offset(encoding.overflowing[0]) :].strip()
                truncations.append(Truncation(prompt, self.name, self._spec.max_tokens, dropped))
        return TokenIds(ids, tuple(truncations))


def _first_offset(encoding: Any) -> int:
    """Where in the prompt the first token of ``encoding`` that is text begins."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return next((start for (start, _), special in pairs if not special), 0)


def _without_special_text(data: bytes) -> str:
    """The tokenizer.json with no special token that text could match."""
    description = json.loads(data)
    special = {token["content"] for token in description.get("added_tokens", ()) if token.get("special")}
    description["added_tokens"] = [token for token in description.get("added_tokens", ()) if not token.get("special")]
    description["truncation"] = description["padding"] = None
    model = description["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {_hidden(piece, special): index for piece, index in vocab.items()}
        if model.get("unk_token") in special:
            model["unk_token"] = _hidden(model["unk_token"], special)
    elif isinstance(vocab, list):
        model["vocab"] = [(_hidden(piece, special), score) for piece, score in vocab]
    return json.dumps(description)


def _hidden(piece: str, special: set[str]) -> str:
    return _UNTYPEABLE + piece if piece in special else piece
