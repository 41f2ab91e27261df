"""Tokenizers for synthetic bases: of the published kinds, with a small vocabulary that knows every text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fullsize.shapes import Model


def write_tokenizers(model: Model, base: Path) -> None:
    """Write the tokenizers' folders of that model below ``base``, trained on the shipped calibration prompts."""
    from export.students.prompts import PROMPTS, read_prompts

    prompts = list(read_prompts(PROMPTS / "calibration.txt"))
    if model.name == "qwen":
        from export.architectures.qwen import TEMPLATE

        build_qwen_tokenizer(prompts, TEMPLATE).save_pretrained(base / "tokenizer")
        return
    from arcflow.tiny.text import build_clip_tokenizer, build_t5_tokenizer

    build_clip_tokenizer(prompts).save_pretrained(base / "tokenizer")
    build_t5_tokenizer([text for text in prompts if text.isascii()]).save_pretrained(base / "tokenizer_2")


def build_qwen_tokenizer(corpus: Sequence[str], template: str) -> Any:
    """A Qwen2 tokenizer (byte-level BPE) whose merges make every word of the template and of ``corpus`` one token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = ("<|im_start|>", "<|im_end|>")
    pieces = re.split("|".join(re.escape(token) for token in (*special, "{}")), template)
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 15, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    learner.train_from_iterator([*pieces, *corpus], trainer)
    model = json.loads(learner.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=131072,
        additional_special_tokens=list(special),
    )
