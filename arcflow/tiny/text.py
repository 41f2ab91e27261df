"""Tokenizers and text encoders of the embedded default: FLUX's pair, CLIP and T5, small.

Both tokenizers are trained on the captions that the data set can have, but know every byte (CLIP) and every
printable ASCII character (T5), so any prompt has ids; words never trained on merely mean little.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP_TOKENS = 24
T5_TOKENS = 12
WIDTH = 64
ENCODED_AT_ONCE = 1024
_WORD_END = "</w>"


def build_clip_tokenizer(corpus: list[str], size: int = 800) -> Any:
    """A CLIP tokenizer (byte-level BPE, lower case, end-of-word suffix) of ``size`` pieces learnt from ``corpus``."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator((text.lower() for text in corpus), trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    pieces = alphabet + [c + _WORD_END for c in alphabet] + ["".join(m) for m in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def build_t5_tokenizer(corpus: list[str]) -> Any:
    """A T5 tokenizer (unigram, ids 0 pad, 1 end, 2 unknown) whose pieces are the corpus's words and all characters.

    A word's score is the log of its frequency. A character scores lower than any word, so that known words stay
    whole and unknown ones are spelt. (The library's unigram trainer splits so uniform a corpus into letters.)
    """
    words = Counter("\u2581" + word for text in corpus for word in text.split())
    total = sum(words.values())
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(word, math.log(count / total)) for word, count in sorted(words.items())]
    floor = min(score for _, score in vocab) - 5.0
    characters = "\u2581" + string.ascii_letters + string.digits + string.punctuation
    vocab += [(c, floor) for c in characters if c not in dict(vocab)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def build_clip_encoder(tokenizer: Any) -> CLIPTextModel:
    """An untrained CLIP text model, 2 layers of width 64; the ids of start, end and padding are the tokenizer's."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5_encoder(tokenizer: Any) -> T5EncoderModel:
    """An untrained T5 v1.1 encoder, 2 layers of width 64."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=16,
            num_heads=4,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_decoder_layers=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


@dataclass(frozen=True)
class TokenTable:
    """Token ids of a list of captions: clip [N, 24] and t5 [N, 12], int64, padded as FluxPipeline pads them."""

    captions: list[str]
    clip: Tensor
    t5: Tensor

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each caption."""
        return {text: row for row, text in enumerate(self.captions)}


def tokenize(captions: list[str], clip_tokenizer: Any, t5_tokenizer: Any) -> TokenTable:
    """Tokenise ``captions`` once for both encoders."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return TokenTable(
        captions=captions,
        clip=clip_tokenizer(captions, max_length=CLIP_TOKENS, **options).input_ids,
        t5=t5_tokenizer(captions, max_length=T5_TOKENS, **options).input_ids,
    )


class TextEncoders(nn.Module):
    """CLIP and T5 together, as FluxPipeline calls them (no attention masks)."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel) -> None:
        super().__init__()
        self.clip = clip
        self.t5 = t5

    def forward(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (pooled [B, 64] from CLIP, sequence [B, 12, 64] from T5)."""
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids)[0]


@torch.no_grad()
def encode(encoders: TextEncoders, table: TokenTable) -> tuple[Tensor, Tensor]:
    """Encode a whole table: (pooled [N, 64], sequence [N, 12, 64]) float32."""
    parts = [
        encoders(*rows) for rows in zip(table.clip.split(ENCODED_AT_ONCE), table.t5.split(ENCODED_AT_ONCE), strict=True)
    ]
    pooled, sequence = (torch.cat(part).float() for part in zip(*parts, strict=True))
    return pooled, sequence
