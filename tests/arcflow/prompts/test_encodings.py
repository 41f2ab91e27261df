"""Encodings: what diffusers itself makes of a prompt, live, in turns, and from a cache that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from arcflow.errors import BackboneError, PromptsError
from arcflow.prompts import cache as caching
from arcflow.prompts.cache import CachedEncodings, cache_encodings
from arcflow.prompts.encodings import LiveEncodings
from arcflow.sources.base import find_base
from arcflow.sources.text import Encoding, TextEncoders
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen

PROMPTS = [f"{caption} {number}" for number in range(3) for caption in CAPTIONS]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"flux": small_flux(root / "flux").base, "qwen": small_qwen(root / "qwen").base}


def encoders(folder: Path, name: str, placement: Any = "device", tokens: int = 16) -> TextEncoders:
    return TextEncoders(find_base(folder, name), tokens, torch.float32, CPU, placement)


def equal(a: Encoding, b: Encoding) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_a_batch_of_encodings_is_the_pipelines_own(folders: dict[str, Path], name: str) -> None:
    import diffusers

    text = encoders(folders[name], name)
    arch = text.base.architecture
    live = LiveEncodings(list(CAPTIONS), text, nn.Linear(1, 1))
    condition = arch.condition(live.get(range(4)), 3.0, 2, 3)
    pipeline = getattr(diffusers, arch.PIPELINE_CLASS).from_pretrained(folders[name], transformer=None, vae=None)
    assert condition.image_tokens == 6
    if name == "flux":
        sequence, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), None, max_sequence_length=16)
        torch.testing.assert_close(condition.pooled, pooled)
        assert condition.guidance.tolist() == [3.0] * 4 and condition.txt_ids.shape == (16, 3)
    else:
        sequence, mask = pipeline.encode_prompt(list(CAPTIONS), max_sequence_length=16)
        assert torch.equal(condition.mask, torch.ones(sequence.shape[:2]).bool() if mask is None else mask.bool())
        assert len(set(condition.mask.sum(dim=1).tolist())) > 1, "prompts of unlike lengths were meant"
    torch.testing.assert_close(condition.sequence, sequence, rtol=1e-4, atol=1e-5)


def test_little_memory_and_turns_change_nothing(folders: dict[str, Path]) -> None:
    backbone = nn.Linear(2, 2).requires_grad_(False)
    weight = backbone.weight.clone()
    plain = LiveEncodings(PROMPTS, encoders(folders["qwen"], "qwen"), backbone)
    tight = LiveEncodings(PROMPTS, encoders(folders["qwen"], "qwen", "turns"), backbone, kept=1)
    ahead = LiveEncodings(PROMPTS, encoders(folders["qwen"], "qwen", "turns"), backbone)
    coming = lambda: range(len(PROMPTS))  # noqa: E731
    for numbers in ([0, 5, 5], [7, 1]):
        wanted = plain.get(numbers)
        for other in (tight, ahead):
            assert all(map(equal, wanted, other.get(numbers, coming)))
    assert torch.equal(backbone.weight, weight)
    ahead.text.encode = lambda prompts: pytest.fail("all of them were encoded ahead")  # type: ignore[method-assign]
    assert all(map(equal, plain.get(range(12)), ahead.get(range(12))))


def test_guidance_by_input_has_no_empty_prompt(folders: dict[str, Path]) -> None:
    live = LiveEncodings(PROMPTS, encoders(folders["flux"], "flux"), nn.Linear(1, 1))
    with pytest.raises(PromptsError, match="no empty prompt"):
        live.empty()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "SHARD", 5)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_the_cache_holds_what_is_encoded_live(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    said: list[str] = []
    cached = cache_encodings(tmp_path / "cache", PROMPTS, encoders(folders[name], name), said.append)
    live = LiveEncodings(PROMPTS, encoders(folders[name], name), nn.Linear(1, 1))
    assert len(cached) == len(live) == 12
    assert all(map(equal, cached.get(range(12)), live.get(range(12))))
    if name == "qwen":
        assert equal(cached.empty(), live.empty())
    assert said[0].startswith("encodings of 12 prompts: about") and said[-1] == "encodings: 3 of 3 shards"
    files = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors"))
    assert files > 0


class _KilledError(Exception):
    """Ends a caching in the middle."""


@pytest.mark.usefixtures("small_shards")
def test_a_killed_caching_goes_on(folders: dict[str, Path], tmp_path: Path) -> None:
    def kill(line: str) -> None:
        if line.startswith("encodings: 1"):
            raise _KilledError

    with pytest.raises(_KilledError):
        cache_encodings(tmp_path, PROMPTS, encoders(folders["qwen"], "qwen"), kill)
    first = (tmp_path / "encodings-000000.safetensors").stat().st_mtime_ns
    said: list[str] = []
    cached = cache_encodings(tmp_path, PROMPTS, encoders(folders["qwen"], "qwen"), said.append)
    assert said[-1] == "encodings: 2 of 2 shards"
    assert (tmp_path / "encodings-000000.safetensors").stat().st_mtime_ns == first
    live = LiveEncodings(PROMPTS, encoders(folders["qwen"], "qwen"), nn.Linear(1, 1))
    assert all(map(equal, cached.get(range(12)), live.get(range(12))))
    said.clear()
    cache_encodings(tmp_path, PROMPTS, encoders(folders["qwen"], "qwen"), said.append)
    assert said == []


@pytest.mark.usefixtures("small_shards")
def test_several_processes_share_the_work(folders: dict[str, Path], tmp_path: Path) -> None:
    for process in range(2):
        text = encoders(folders["qwen"], "qwen")
        cached = cache_encodings(tmp_path, PROMPTS, text, lambda _: None, (process, 2))
        assert len(list(tmp_path.glob("encodings-*.safetensors"))) == (2, 3)[process]
    assert len(cached.get(range(12))) == 12


@pytest.mark.usefixtures("small_shards")
def test_a_cache_of_others_is_refused_and_a_damaged_one_mended(folders: dict[str, Path], tmp_path: Path) -> None:
    def cache(prompts: list[str], tokens: int = 16) -> CachedEncodings:
        return cache_encodings(tmp_path, prompts, encoders(folders["qwen"], "qwen", tokens=tokens), lambda _: None)

    cached = cache(PROMPTS)
    for prompts, tokens in ((PROMPTS[:-1], 16), (PROMPTS, 8)):
        with pytest.raises(PromptsError, match="other prompts or text encoders"):
            cache(prompts, tokens)
    shard = tmp_path / "encodings-000001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    caching._opened.cache_clear()
    with pytest.raises(PromptsError, match="missing or damaged"):
        cached.get([6])
    assert len(cache(PROMPTS).get([6])) == 1 and shard.read_bytes() == whole


def test_no_room_is_said_before_anything_is_encoded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(PromptsError, match="GiB free"):
        cache_encodings(tmp_path, PROMPTS, encoders(folders["flux"], "flux"), lambda _: None)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_base_without_text_encoders_cannot_encode(folders: dict[str, Path], tmp_path: Path) -> None:
    for part in ("transformer", "vae", "model_index.json"):
        (tmp_path / part).symlink_to(folders["qwen"] / part)
    live = LiveEncodings(PROMPTS, encoders(tmp_path, "qwen"), nn.Linear(1, 1))
    with pytest.raises(BackboneError, match="lacks text_encoder, tokenizer"):
        live.get([0])
