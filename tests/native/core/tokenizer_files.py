"""Tokenizer files of the three kinds that bundles carry, trained here, and prompts of every sort to try them with.

The files have the components of those that OpenAI, Google and Qwen publish, in the order and with the options there.
"""

from __future__ import annotations

import base64
import functools
import json
import lzma
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).parents[3]
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|" + CLIP_WORDS
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_SCRIPTS = (
    (0x61, 0x7A), (0xDF, 0xF6), (0x100, 0x17F), (0x3B1, 0x3C9), (0x410, 0x44F), (0x531, 0x556), (0x5D0, 0x5EA),
    (0x621, 0x64A), (0x905, 0x939), (0x985, 0x9B9), (0xE01, 0xE30), (0x10D0, 0x10F0), (0x1E00, 0x1EFF),
    (0x1F00, 0x1F15), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x4FFF), (0xAC00, 0xAD00), (0x10400, 0x1044F),
    (0x1E900, 0x1E943),
)  # fmt: skip
"""Letters of twenty scripts: first and last code point."""


@functools.cache
def corpus() -> tuple[str, ...]:
    """Sentences in English and in made-up words of many scripts, the same in every run."""
    source = random.Random(11)
    lines = (ROOT / "export/prompts/calibration.txt").read_text(encoding="utf-8").splitlines()
    lines += (ROOT / "export/prompts/tiny.txt").read_text(encoding="utf-8").splitlines()
    names = [unicodedata.name(chr(code), "").lower() for code in range(0x20, 0x3000, 3)]
    lines += [f"the {name}, it's {len(name)} letters" for name in names if name]
    for first, last in _SCRIPTS:
        letters = [chr(code) for code in range(first, last + 1) if chr(code).isalpha()]
        words = ["".join(source.choices(letters, k=source.randint(1, 7))) for _ in range(60)]
        lines += [" ".join(source.choices(words, k=8)) for _ in range(40)]
    return tuple(lines)


@functools.cache
def charsmap() -> str:
    """SentencePiece's rules ``nmt_nfkc``, which T5 has: base64, as in a tokenizer.json."""
    return base64.b64encode(lzma.decompress((Path(__file__).parent / "nmt_nfkc.xz").read_bytes())).decode()


def _added(identity: int, content: str, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": special}
    return {"id": identity, "content": content, **flags}


def _file(model: dict[str, Any], added: Sequence[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [*added], **empty, **parts,
            "model": model}  # fmt: skip


@functools.cache
def _byte_pairs(size: int, split: str, suffix: str, lower: bool) -> str:
    options: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    learner = Tokenizer(models.BPE(**options))
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lower else [])]
    learner.normalizer = normalizers.Sequence(steps)
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "removed" if lower else "isolated", invert=lower),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, **options)
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = alphabet + [c + suffix for c in alphabet] + ["".join(pair) for pair in model["merges"]]
    model["vocab"] = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return json.dumps(model)


def clip(split: str = CLIP_SPLIT, legacy: bool = False) -> dict[str, Any]:
    """CLIP's. legacy: merges as lines and no name of the model, as files of before 2021 have it."""
    model = json.loads(_byte_pairs(4000, CLIP_WORDS, "</w>", True))
    start, end = len(model["vocab"]), len(model["vocab"]) + 1
    model["vocab"].update({"<|startoftext|>": start, "<|endoftext|>": end})
    model.update(unk_token="<|endoftext|>", continuing_subword_prefix="")
    if legacy:
        del model["type"]
        model["merges"] = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    white = {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}
    words = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Removed", "invert": True}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return _file(
        model,
        [_added(start, "<|startoftext|>"), _added(end, "<|endoftext|>")],
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, white, {"type": "Lowercase"}]},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [words, levels]},
        post_processor={
            "type": "RobertaProcessing", "sep": ["<|endoftext|>", end], "cls": ["<|startoftext|>", start],
            "trim_offsets": False, "add_prefix_space": False,
        },
    )  # fmt: skip


@functools.cache
def _pieces(size: int) -> str:
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.Precompiled(base64.b64decode(charsmap()))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(corpus(), trainer)
    return json.dumps(json.loads(learner.to_str())["model"])


def t5(converted: bool = False, byte_fallback: bool = False, plain: bool = False) -> dict[str, Any]:
    """T5's. converted: as transformers makes it of a SentencePiece model. plain: without the map of characters."""
    model = json.loads(_pieces(3000))
    if byte_fallback:
        model["byte_fallback"] = True
        model["vocab"] += [[f"<0x{byte:02X}>", -14.0] for byte in range(256)]
    extra = [f"<extra_id_{index}>" for index in range(3)]
    special = ["<pad>", "</s>", "<unk>", *extra]
    model["vocab"] += [[name, 0.0] for name in extra]
    ids = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    mapped: dict[str, Any] = {"type": "Precompiled", "precompiled_charsmap": charsmap()}
    space: dict[str, Any] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    before: dict[str, Any] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]}
    normalizer: dict[str, Any] | None = None if plain else mapped
    if converted:
        strip = {"type": "Strip", "strip_left": False, "strip_right": True}
        spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
        normalizer, before = {"type": "Sequence", "normalizers": [mapped, strip, spaces]}, space
    a, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}
    return _file(
        model,
        [_added(ids[name], name) for name in special],
        normalizer=normalizer,
        pre_tokenizer=before,
        post_processor={
            "type": "TemplateProcessing", "single": [a, end],
            "pair": [a, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
    )  # fmt: skip


def qwen2(ignore_merges: bool = False, trim_offsets: bool = False) -> dict[str, Any]:
    """Qwen2's, with tokens of its own kind that are not special and one that is found in normalised text."""
    model = json.loads(_byte_pairs(6000, QWEN_SPLIT, "", False))
    model.update(continuing_subword_prefix="", end_of_word_suffix="", ignore_merges=ignore_merges)
    if ignore_merges:  # Words that no merges lead to.
        model["vocab"].update({"\u0120zebra-free": len(model["vocab"]), "\u0120qqqq": len(model["vocab"]) + 1})
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|fim|>", "caf\u00e9<x>"]
    first = len(model["vocab"])
    added = [_added(first + i, name, i < 3 or i == 5, i == 6) for i, name in enumerate(names)]
    split = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    post = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": False}
    return _file(
        model,
        added,
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, levels]},
        post_processor=post,
    )


_ZWJ = "\u200d"
_PIECES = [
    "'s", "'S", "'t", "'RE", "'Ve", "'m", "'LL", "'lL", "'D", "'\u017f", "it's", "IT'S", "don't", "''s", "'", "s",
    "<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", "</s>", "<pad>", "<unk>", "<extra_id_0>", "<|im_start|>",
    "<|im_end|>", "<|im_end|>\n", "<tool_call>", "</tool_call>", "<tool_", "cafe\u0301<x>", "caf\u00e9<x>", "<|fim|>",
    "{}", "\\s+", "<0x41>", "<0x", "\u2581", "\u2581\u2581", "\u0120", "zebra-free", " qqqq", "</w>", "a</w>",
    "\U0001f468" + _ZWJ + "\U0001f469" + _ZWJ + "\U0001f467", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7",
    "\u2764\ufe0f", "\U0001f3f3\ufe0f" + _ZWJ + "\U0001f308", "#\ufe0f\u20e3", "\ufb01", "\ufb06", "\u0149", "\u1e9e",
    "\u0130", "\u0130stanbul", "\u03a3\u03c2", "\u039f\u0394\u039f\u03a3", "\u212b", "\u2126", "\uac00\u11a8",
    "\u1100\u1161\u11a8", "\u0041\u030a", "q\u0307\u0323", "e\u0323\u0302", "\u0958", "\u0344", "\u2adc", "\uf900",
    "\U0002f800", "\U000110bb", "\U00011938", "\U00011935\U00011930", "\U0001e944\U0001e900", "\u0600\u0628", "\u0e33",
    "\u0dca\u200d", "\u0915\u094d\u0937", "\u0915\u0300", "\u1171\u11b6", "\u00bd", "\u2460", "\u0663", "\u216b",
    "\uff21\uff22", "\uff76\uff9e", "\u3300", "\u00a0", "\u3000", "\u2028", "\u202f", "\u1680", "\u0085", "\x1c\x1d",
    "\x0b\x0c", "\r\n", "\n\r\n", "\t", "  ", "   ", " \n ", "\u200b", "\u200e", "\ufeff", "\u00ad", "\x01", "\x7f",
    "\x1b[0m", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\U000e0041", "8K", "16:9", "1,000.50", "...", "!!!", "--",
    '"', '"\'', "\\", "/*", "\U0001f600" * 3, "\u0315\u0300\u05ae\u0300", "a\u0315\u0300\u05ae\u0300b",
]  # fmt: skip
_RANGES = [
    (0x20, 0x7E), (0x01, 0x1F), (0x80, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF),
    (0x900, 0xDFF), (0xE00, 0xFFF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF),
    (0x3000, 0x30FF), (0x4E00, 0x4FFF), (0xA640, 0xABFF), (0xAC00, 0xAD00), (0xF900, 0xFAFF), (0xFB00, 0xFFFD),
    (0x10000, 0x11FFF), (0x16100, 0x16EFF), (0x1D100, 0x1D7FF), (0x1E000, 0x1E9FF), (0x1F000, 0x1FAFF),
    (0x20000, 0x2FA1F), (0x01, 0x10FFFF),
]  # fmt: skip


def _character(source: random.Random, first: int, last: int) -> str:
    code = source.randint(first, last)
    return "\ue001" if 0xD800 <= code <= 0xDFFF else chr(code)


def _case(source: random.Random, word: str) -> str:
    return source.choice([word, word, word.upper(), word.title(), word.swapcase()])


def prompts(count: int, seed: int) -> list[str]:
    """Strings without NUL and surrogates (a request with them is rejected): short ones, long ones, every script."""
    source = random.Random(seed)
    words = sorted({word for line in corpus() for word in line.split()})
    result = [*_PIECES, "", " ", "a" * 10000, "\u00e9" * 3000, " " * 3000, "ab" * 4000, "!" * 5000, "\n" * 2000]
    result += ["\U0001f468" + (_ZWJ + "\U0001f469") * 500, "e" + "\u0301\u0323" * 800, "word " * 1500, "7" * 3000]
    while len(result) < count:
        parts = []
        for _ in range(source.choice([1, 2, 3, 5, 8, 13, 30])):
            sort = source.random()
            if sort < 0.35:
                parts.append(_case(source, source.choice(words)))
            elif sort < 0.6:
                parts.append(source.choice(_PIECES))
            else:
                first, last = source.choice(_RANGES)
                parts.append("".join(_character(source, first, last) for _ in range(source.choice([1, 1, 2, 4]))))
            parts.append(source.choice(["", "", " ", " ", "  ", "\n", ", ", "'s "]))
        result.append("".join(parts))
    return result[:count]
