"""The C++ tokenizers against runtime/text.py: the same ids, masks and warnings for prompts of every sort."""

from __future__ import annotations

import ast
import base64
import copy
import json
import random
import re
import struct
import subprocess
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.schema import TokenizerSpec
from runtime.errors import BackendError
from runtime.text import PromptTokenizer, TokenIds
from tests.native.core import tokenizer_files as files

BUNDLE = files.ROOT / "engines/bundles/tiny-fp16-cpu"
BATCH = 100
BACKEND_UNAVAILABLE, INVALID_ARGUMENT = 3, 1
"""Codes of the C interface."""


@dataclass(frozen=True)
class Kind:
    """A tokenizer.json, what a manifest says of it, and how many strings it is tried with."""

    build: Callable[[], dict[str, Any]]
    count: int
    spec: dict[str, Any]


_TEMPLATE = {"pad_id": 3, "template": files.QWEN_TEMPLATE, "drop": 5, "pad": "longest"}
KINDS = {
    "clip": Kind(files.clip, 5500, {"max_tokens": 77, "pad_id": 7}),
    "clip-short": Kind(lambda: files.clip(files.CLIP_WORDS, legacy=True), 5000, {"max_tokens": 12, "pad_id": 7}),
    "t5": Kind(files.t5, 3000, {"max_tokens": 64, "pad_id": 0}),
    "t5-converted": Kind(lambda: files.t5(converted=True), 2500, {"max_tokens": 9, "pad_id": 0}),
    "t5-bytes": Kind(lambda: files.t5(byte_fallback=True), 2500, {"max_tokens": 40, "pad_id": 0}),
    "t5-plain": Kind(lambda: files.t5(plain=True), 2500, {"max_tokens": 20, "pad_id": 0, "pad": "longest"}),
    "qwen2": Kind(files.qwen2, 5000, {"max_tokens": 90, **_TEMPLATE}),
    "qwen2-whole": Kind(
        lambda: files.qwen2(ignore_merges=True, trim_offsets=True), 3000, {"max_tokens": 40, **_TEMPLATE}
    ),
    "qwen2-alone": Kind(files.qwen2, 2500, {"max_tokens": 30, "pad_id": 3}),
    "tiny-clip": Kind(lambda: bundled("clip"), 1000, {"max_tokens": 24, "pad_id": 1832}),
    "tiny-t5": Kind(lambda: bundled("t5"), 1000, {"max_tokens": 12, "pad_id": 0}),
}
"""CLIP's, T5's and Qwen2's are tried with more than 10,000 strings each, in their several forms together."""


def bundled(name: str) -> dict[str, Any]:
    """A tokenizer of the embedded default."""
    description: dict[str, Any] = json.loads((BUNDLE / f"tokenizers/{name}.json").read_bytes())
    return description


class Native:
    """The C++ tokenizer of one program run: ``load`` one, then ask it."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the program ended with {self._process.wait()} at {json.dumps(request)[:500]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def load(self, name: str, document: str, spec: TokenizerSpec) -> dict[str, Any]:
        fields = {field: getattr(spec, field) for field in spec.__struct_fields__}
        return self.ask(name=name, json=document, spec=fields)

    def tokens(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        answer = self.ask(prompts=prompts)
        assert "error" not in answer, answer
        ids, mask = (np.array(answer[key], np.int64).reshape(answer["shape"]).tolist() for key in ("ids", "mask"))
        return ids, mask, answer["warnings"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(10) == 0


@pytest.fixture(scope="module")
def native(native_build: Path) -> Iterator[Native]:
    process = Native(native_build / "probe_tokenize")
    yield process
    process.close()


def both(native: Native, name: str, description: dict[str, Any] | None = None, **changes: Any) -> PromptTokenizer:
    """Load a tokenizer into the program, and return Python's."""
    document = json.dumps(KINDS[name].build() if description is None else description)
    spec = TokenizerSpec(**{"file": f"tokenizers/{name}.json", **KINDS[name].spec, **changes})
    answer = native.load(name, document, spec)
    assert "error" not in answer, answer
    return PromptTokenizer(name, document.encode(), spec)


def same_warning(ours: str, theirs: str) -> bool:
    """Equal; but a character that this Python does not know yet, it escapes where the core may print it."""
    (ours, ours_dropped), (theirs, theirs_dropped) = (text.split(": ", 1) for text in (ours, theirs))
    new = any(unicodedata.category(c) == "Cn" for c in ast.literal_eval(theirs_dropped))
    dropped = ast.literal_eval(ours_dropped) == ast.literal_eval(theirs_dropped)
    return ours == theirs and (ours_dropped == theirs_dropped or (new and dropped))


def differences(native: Native, python: PromptTokenizer, prompts: Sequence[str]) -> list[str]:
    """The prompts of a batch that the two runtimes encode differently."""
    expected: TokenIds = python(prompts)
    ids, mask, warnings = native.tokens(prompts)
    found = [prompt for prompt, ours, theirs in zip(prompts, ids, expected.ids.tolist(), strict=True) if ours != theirs]
    if mask != expected.mask.tolist() and not found:
        found.append("the masks differ")
    theirs = [str(truncation) for truncation in expected.truncations]
    if len(warnings) != len(theirs):
        found.append(f"{len(warnings)} and {len(theirs)} warnings")
    return found + [f"{a} | {b}" for a, b in zip(warnings, theirs, strict=False) if not same_warning(a, b)]


def check(native: Native, python: PromptTokenizer, prompts: Sequence[str]) -> None:
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    failed = [found for batch in batches for found in differences(native, python, batch)]
    assert not failed, [ascii(text[:300]) for text in failed[:5]]


@pytest.mark.parametrize("name", KINDS)
def test_every_sort_of_text(native: Native, name: str) -> None:
    prompts = files.prompts(KINDS[name].count, seed=list(KINDS).index(name))
    check(native, both(native, name), prompts)


@pytest.mark.parametrize("name", ["clip", "t5", "qwen2"])
def test_every_character_there_is(native: Native, name: str) -> None:
    """All of planes 0 and 1 but for private use, some of the others: alone, after a letter, and before a mark."""
    codes = [*range(1, 0xD800), *range(0xF8F0, 0x20000), *range(0x20000, 0x33480, 9), *range(0xE0000, 0xE01F0)]
    codes += [0xE000, 0x2EBEF, 0x2EBF0, 0x2EE5D, 0x2F800, 0x2FA1D, 0xFFFFF, 0x10FFFD, 0x10FFFF]
    forms = {"clip": "{} ", "t5": "a{}\u0301", "qwen2": "{}\u0315a"}
    python = both(native, name, max_tokens=1200, pad="longest")
    check(
        native,
        python,
        ["".join(forms[name].format(chr(c)) for c in codes[at : at + 80]) for at in range(0, len(codes), 80)],
    )


def test_both_refuse_the_same_damage(native: Native) -> None:
    """Where one runtime opens a damaged file and the other does not, a bundle would work in one of them only."""
    damage: list[Callable[[dict[str, Any]], Any]] = [
        lambda d: d.pop("model"),
        lambda d: d.update(model=3),
        lambda d: d.update(version="2.0"),
        lambda d: d["model"].pop("vocab"),
        lambda d: d["model"].pop("merges"),
        lambda d: d["model"]["vocab"].update(zzz=-1),
        lambda d: d["model"]["vocab"].update(zzz=1.5),
        lambda d: d["model"]["vocab"].update(zzz="1"),
        lambda d: d["model"]["vocab"].update(zzz=2**32),
        lambda d: d["model"]["merges"].append(["not-a-piece", "a"]),
        lambda d: d["model"]["merges"].append(["a", "<|endoftext|>"]),
        lambda d: d["model"]["merges"].append(["a"]),
        lambda d: d["model"]["merges"].append("a b c"),
        lambda d: d["model"]["merges"].append(3),
        lambda d: d["added_tokens"].append({"content": "x", "special": True}),
        lambda d: d["added_tokens"].append({"id": -1, "content": "x", "special": True}),
        lambda d: d["added_tokens"].append(7),
        lambda d: d.update(normalizer={"type": "Unknown"}),
        lambda d: d.update(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
        lambda d: d.update(pre_tokenizer={"type": "Metaspace", "replacement": "__"}),
        lambda d: d.update(post_processor={"type": "RobertaProcessing", "sep": ["x", -1], "cls": ["y", 0]}),
    ]
    for number, change in enumerate(damage):
        description = copy.deepcopy(files.clip())
        change(description)
        document = json.dumps(description)
        spec = TokenizerSpec(file="tokenizers/clip.json", **KINDS["clip"].spec)
        with pytest.raises(BackendError, match=r"the clip tokenizer 'tokenizers/clip\.json' cannot be read: "):
            PromptTokenizer("clip", document.encode(), spec)
        answer = native.load("clip", document, spec)
        assert answer.get("code") == BACKEND_UNAVAILABLE, number
        assert answer["error"].startswith("the clip tokenizer 'tokenizers/clip.json' cannot be read: its "), number


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "BertNormalizer"}, "its normalizer BertNormalizer is not known here; known are NFC"),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""}, 'regular expression "x\\+"'),
        ("pre_tokenizer", {"type": "Digits"}, "its pre_tokenizer Digits is not known here; known are Split"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
            "known are the regular expressions of CLIP",
        ),
        ("post_processor", {"type": "Other"}, "its post_processor Other is not known here"),
        (
            "model",
            {"type": "WordPiece", "vocab": {}},
            "its model WordPiece is not known here; known are BPE and Unigram",
        ),
    ],
)
def test_what_is_not_known_is_named(native: Native, part: str, value: dict[str, Any], message: str) -> None:
    document = json.dumps({**files.clip(), part: value})
    answer = native.load("clip", document, TokenizerSpec(file="tokenizers/clip.json", **KINDS["clip"].spec))
    assert answer["code"] == BACKEND_UNAVAILABLE
    assert re.search(message, answer["error"]), answer["error"]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[]",
        "null",
        '"x"',
        "{" * 100000,
        "[" * 1000000,
        '{"model": ' + '{"a": ' * 1000 + "1" + "}" * 1001,
        '{"normalizer": ' + '{"type": "Sequence", "normalizers": [' * 500 + "]}" * 500 + "}",
        '{"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0]]}}',
        '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e999]]}}',
        '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"]]}}',
        '{"model": {"type": "Unigram", "unk_id": null, "vocab": [["a", 0]]}}',
        '{"model": {"type": "Unigram", "unk_id": 0, "vocab": {"a": 0}}}',
        '{"model": {"type": "BPE", "vocab": [], "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": {}}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": [1]}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [[["a", "a"]]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [["a", "a", "a"]]}}',
        '{"model": {"type": "BPE", "vocab": {"\\ud800": 1}, "merges": []}}',
        '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA"}, "model": {}}',
        '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "model": {}}',
        '{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAD/"}, "model": {}}',
    ],
)
def test_a_hostile_file_is_a_clear_error(native: Native, document: str) -> None:
    answer = native.load("clip", document, TokenizerSpec(file="tokenizers/clip.json", **KINDS["clip"].spec))
    assert answer.get("code") == BACKEND_UNAVAILABLE, answer
    assert answer["error"].startswith("the clip tokenizer 'tokenizers/clip.json' cannot be read: it")


def test_a_map_of_characters_with_wild_indices_is_survived(native: Native) -> None:
    """The double array's units are random: whatever they point at, nothing is read outside."""
    source = random.Random(3)
    for _ in range(50):
        units = [source.getrandbits(32) for _ in range(source.choice([1, 3, 300]))]
        units = [unit & 0x1FF if source.random() < 0.7 else unit for unit in units]
        data = struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + b"abc\0\xc3\xa9\0"
        description = files.t5(plain=True)
        charsmap = base64.b64encode(data).decode()
        description["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        spec = TokenizerSpec(file="tokenizers/t5.json", **KINDS["t5"].spec)
        assert "error" not in native.load("t5", json.dumps(description), spec)
        native.tokens(["".join(map(chr, range(1, 600)))])


def test_bytes_that_are_not_text_are_refused(native: Native) -> None:
    """Requests with them are rejected before; Python's tokenizer cannot be given any."""
    both(native, "tiny-clip")
    for data in [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"ok \x80"]:
        answer = native.ask(base64=[base64.b64encode(data).decode()])
        assert answer["code"] == INVALID_ARGUMENT
        assert "is not UTF-8" in answer["error"]
    assert "error" not in native.ask(base64=[base64.b64encode(b"\0special\0<|endoftext|> \0").decode()])


def test_no_room_for_the_tokens_around_a_prompt(native: Native) -> None:
    document = json.dumps(bundled("clip"))
    answer = native.load("clip", document, TokenizerSpec("clip.json", 1, 0))
    assert "adds 2 tokens to a prompt, more than the max_tokens in the manifest, 1" in answer["error"]
    python = both(native, "tiny-clip", bundled("clip"), max_tokens=2)
    assert not differences(native, python, ["a rose", "", "  x"])


def test_a_large_vocabulary_and_a_long_word(native: Native) -> None:
    """Of Qwen2's size. The bounds are loose for machines that are busy: a quadratic step would take minutes."""
    source = random.Random(1)
    description = files.qwen2()
    vocabulary, merges = description["model"]["vocab"], description["model"]["merges"]
    short = list(vocabulary)[:4000]
    while len(vocabulary) < 151643:
        left, right = source.choice(short), source.choice(short)
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    spec = TokenizerSpec(file="text.json", **{**KINDS["qwen2"].spec, "max_tokens": 1058})
    answer = native.load("text", json.dumps(description), spec)
    assert answer["load_ms"] < 10000
    for prompt in ["a" * 10000, "\u00e9" * 10000, " " * 10000, "!" * 10000, "e\u0301\u0323" * 3000]:
        assert native.ask(prompts=[prompt])["encode_ms"] < 2000
