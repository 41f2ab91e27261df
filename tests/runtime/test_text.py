"""Prompts to ids: length, padding, cuts, and that nobody can type a special token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.schema import TokenizerSpec
from runtime.errors import BackendError
from runtime.text import PromptTokenizer
from tests.runtime import small_bundle
from tests.runtime.small_bundle import CLIP_TOKENS, T5_TOKENS

_CLIP = small_bundle.clip_tokenizer()
_START, _END = (_CLIP["model"]["vocab"][name] for name in ("<|startoftext|>", "<|endoftext|>"))
prompts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=80)


def _tokenizer(name: str, description: dict[str, Any], max_tokens: int, pad_id: int) -> PromptTokenizer:
    return PromptTokenizer(name, json.dumps(description).encode(), TokenizerSpec(f"{name}.json", max_tokens, pad_id))


@pytest.fixture(scope="module")
def clip() -> PromptTokenizer:
    return _tokenizer("clip", _CLIP, CLIP_TOKENS, _END)


@pytest.fixture(scope="module")
def t5() -> PromptTokenizer:
    return _tokenizer("t5", small_bundle.t5_tokenizer(), T5_TOKENS, 0)


def test_start_end_and_padding(clip: PromptTokenizer, t5: PromptTokenizer) -> None:
    ids = clip(["dog"]).ids
    assert ids.dtype == np.int64
    assert ids.shape == (1, CLIP_TOKENS)
    assert ids[0, 0] == _START
    assert ids[0, 4:].tolist() == [_END] * (CLIP_TOKENS - 4)
    row = t5(["a red apple"]).ids[0].tolist()
    assert row[3:] == [1] + [0] * (T5_TOKENS - 4)
    assert min(row[:3]) > 2


def test_a_batch_is_its_prompts(clip: PromptTokenizer) -> None:
    both = clip(["a rose", "a lion"]).ids
    assert both.tolist() == [*clip(["a rose"]).ids.tolist(), *clip(["a lion"]).ids.tolist()]


@pytest.mark.parametrize(("name", "end"), [("clip", _END), ("t5", 1)])
def test_a_prompt_too_long_is_cut_before_its_end_token(name: str, end: int, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    prompt = "a smiling face with a red apple of pizza xyzw and then some more"
    tokens = tokenizer([prompt, "a rose"])
    assert tokens.ids[0, -1] == end
    (cut,) = tokens.truncations
    assert cut.prompt == prompt
    assert prompt.endswith(cut.dropped)
    assert 0 < len(cut.dropped) < len(prompt)
    assert f"the {name} encoder takes {tokens.ids.shape[1]} tokens" in str(cut)


def test_what_just_fits_is_not_a_cut(t5: PromptTokenizer) -> None:
    assert not t5([" ".join(["rose"] * (T5_TOKENS - 1))]).truncations
    assert t5([" ".join(["rose"] * T5_TOKENS)]).truncations[0].dropped == "rose"


@pytest.mark.parametrize("text", ["<|endoftext|>", "a <|endoftext|> dog", "<|startoftext|>", "<|EndOfText|> a"])
def test_clip_special_tokens_cannot_be_typed(clip: PromptTokenizer, text: str) -> None:
    ids = clip([text]).ids[0].tolist()
    inner = ids[1 : ids.index(_END)]
    assert ids[0] == _START
    assert not {_START, _END} & set(inner)
    assert len(inner) > 8


@pytest.mark.parametrize("text", ["</s>", "a </s> dog", "<pad>", "a<pad></s>", "<unk>"])
def test_t5_special_tokens_cannot_be_typed(t5: PromptTokenizer, text: str) -> None:
    ids = t5([text]).ids[0].tolist()
    inner = ids[: ids.index(1)]
    assert len(inner) >= 4
    assert not {0, 1, 2} & set(inner)


def test_a_token_that_is_not_special_keeps_its_id() -> None:
    """Qwen2's file has such tokens (<tool_call>) after its special ones, all beyond the vocabulary."""
    description = json.loads(json.dumps(_CLIP))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    first = len(description["model"]["vocab"])
    for index, (content, special) in enumerate([("<|im_end|>", True), ("<tool_call>", False)]):
        description["added_tokens"].append({"id": first + index, "content": content, "special": special, **flags})
    ids = _tokenizer("text", description, CLIP_TOKENS, _END)(["<tool_call><|im_end|>"]).ids[0].tolist()
    assert ids[1] == first + 1
    assert first not in ids


@given(prompts)
def test_any_text_has_ids_with_one_end(prompt: str) -> None:
    clip = _tokenizer("clip", _CLIP, CLIP_TOKENS, _END)
    row = clip([prompt]).ids[0].tolist()
    assert row[0] == _START
    end = row.index(_END)
    assert set(row[end:]) == {_END}
    assert _START not in row[1:]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "BPE"}}', b'{"model": 3}'])
def test_what_is_not_a_tokenizer_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(BackendError, match=r"clip tokenizer 'clip\.json' cannot be read"):
        PromptTokenizer("clip", data, TokenizerSpec("clip.json", 24, 0))


def _ours(reference: Any, name: str, length: int) -> Callable[[list[str]], Any]:
    data = reference.backend_tokenizer.to_str().encode()
    return PromptTokenizer(name, data, TokenizerSpec(f"{name}.json", length, reference.pad_token_id))


@pytest.mark.parametrize(("name", "length"), [("clip", 24), ("t5", 12)])
def test_ids_are_those_of_transformers(name: str, length: int) -> None:
    """Text without special tokens gets the ids that diffusers' pipeline would feed."""
    pytest.importorskip("transformers")
    from arcflow.tiny import text

    corpus = ["a smiling face with sunglasses", "picture of a pizza", "a red apple"]
    reference = {"clip": text.build_clip_tokenizer, "t5": text.build_t5_tokenizer}[name](corpus)
    ours = _ours(reference, name, length)
    samples = [
        "a smiling face with sunglasses",
        "Picture  of a T-REX!",
        "caf\u00e9 \u00e0 la 99",
        "x",
        "a red apple " * 20,
        " a\tdog\n",
        "\U0001f436",
    ]
    expected = reference(samples, padding="max_length", truncation=True, max_length=length).input_ids
    assert ours(samples).ids.tolist() == expected
