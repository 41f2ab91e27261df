"""Prompts to token ids, by the ``tokenizers`` package and the bundle's own ``tokenizer.json``.

What a user types never yields a special token: ``<|endoftext|>``, ``</s>`` or ``<|im_end|>`` in a prompt is spelt out
like any other text. Special tokens are therefore hidden from the tokenizer under other names (not only flagged: a
unigram model, T5's, finds them in its vocabulary whatever the flags). Where the tokenizer has a post-processor, that
puts in start and end, which it knows by id; where there is a template, the special tokens in it are put in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.schema import TokenizerSpec

_UNTYPEABLE = "\0special\0"
"""Put before a special token's name wherever text could match it; a prompt cannot hold it (requests with NUL are
rejected)."""


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
    """ids: int64 [prompts, tokens], padded on the right; mask: int64 of that shape, 1 for a token, 0 for padding.

    truncations: one for each prompt that did not fit.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    truncations: tuple[Truncation, ...]


_Encoded = tuple[list[int], str]
"""The ids of one prompt, and the end of the prompt that did not fit, or ""."""


class PromptTokenizer:
    """One encoder's tokenizer: prompts to ids, start and end tokens or the template's included.

    name: for messages, "clip", "t5" or "text". data: the bytes of its tokenizer.json.
    Raises BackendError where these bytes are not a tokenizer.
    """

    def __init__(self, name: str, data: bytes, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        self.name = name
        self._spec = spec
        try:
            description = json.loads(data)
            self._special = _special_tokens(description)
            self._tokenizer = Tokenizer.from_str(_without_special_text(description, set(self._special)))
        except Exception as error:  # The package raises bare Exception for a file that it cannot read.
            raise BackendError(f"the {name} tokenizer {spec.file!r} cannot be read: {error}") from error
        self._tokenizer.no_padding()
        if not spec.template:
            self._tokenizer.enable_truncation(spec.max_tokens)

    def __call__(self, prompts: Sequence[str]) -> TokenIds:
        """Encode ``prompts`` and pad them to ``max_tokens``, or to the longest, as the bundle's manifest has it."""
        encode = self._in_template if self._spec.template else self._alone
        encoded = [encode(prompt) for prompt in prompts]
        longest = max((len(tokens) for tokens, _ in encoded), default=0)
        width = self._spec.max_tokens if self._spec.pad == "max" else longest
        ids = np.full((len(prompts), width), self._spec.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, (tokens, _) in enumerate(encoded):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        truncations = tuple(
            Truncation(prompt, self.name, self._spec.max_tokens, dropped)
            for prompt, (_, dropped) in zip(prompts, encoded, strict=True)
            if dropped
        )
        return TokenIds(ids, mask, truncations)

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows; their ids are below that."""
        return int(self._tokenizer.get_vocab_size())

    def _alone(self, prompt: str) -> _Encoded:
        """With the start and end of the tokenizer; the end stays when a prompt is cut, as transformers does it."""
        encoding = self._tokenizer.encode(prompt)
        rest = encoding.overflowing
        return encoding.ids, prompt[_first_offset(rest[0]) :].strip() if rest else ""

    def _in_template(self, prompt: str) -> _Encoded:
        """Between the template's special tokens; all that is too long is cut, the template's end with it.

        Text is encoded from one special token to the next, so that the prompt and the template's words about it are
        one text, as they are where the whole is parsed at once.
        """
        most = self._spec.max_tokens
        ids: list[int] = []
        dropped = ""
        for piece in _split(self._spec.template, self._special):
            if piece in self._special:
                ids.append(self._special[piece])
                continue
            before, here, after = piece.partition("{}")
            encoding = self._tokenizer.encode(before + prompt + after if here else piece, add_special_tokens=False)
            room = max(most - len(ids), 0)
            if here and len(encoding.ids) > room:
                dropped = prompt[max(encoding.offsets[room][0] - len(before), 0) :].strip()
            ids += encoding.ids
        return ids[:most], dropped


def load_tokenizers(bundle: Bundle) -> dict[str, PromptTokenizer]:
    """The tokenizers of an opened bundle, by the name of the encoder. Raises BundleError, BackendError."""
    return {n: PromptTokenizer(n, bundle.read(spec.file), spec) for n, spec in bundle.manifest.tokenizers.items()}


def _split(template: str, special: Mapping[str, int]) -> list[str]:
    """The template's pieces in order: special tokens, and the texts between them."""
    names = sorted(special, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, names))})", template) if names else [template]
    return [piece for piece in pieces if piece]


def _first_offset(encoding: Any) -> int:
    """Where in the prompt the first token of ``encoding`` that is text begins."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return next((start for (start, _), special in pairs if not special), 0)


def _special_tokens(description: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the tokens that the file itself calls special, by their text."""
    return {token["content"]: token["id"] for token in description.get("added_tokens", ()) if token.get("special")}


def _without_special_text(description: dict[str, Any], special: set[str]) -> str:
    """The tokenizer.json with no special token that text could match.

    Special tokens stay in their list under a hidden name: those that are not special are numbered by their place there.
    """
    description["added_tokens"] = [
        {**token, "content": _hidden(token["content"], special), "normalized": False} if token.get("special") else token
        for token in description.get("added_tokens", ())
    ]
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
