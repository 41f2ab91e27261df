"""Tokenizers as bundles carry them: taken as they are, or converted from the files of the published repositories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from export.architectures.flux import FLUX
from export.architectures.qwen import QWEN, TEMPLATE, TEXT_TOKENS_MAX
from export.errors import ArcFlowError, ExportError
from export.sources.tokenizers import TokenizerFile, tokenizer_file
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipeline folders by architecture. Not to be changed."""
    root = tmp_path_factory.mktemp("pipelines")
    return {"flux": small_flux(root / "flux").base, "qwen": small_qwen(root / "qwen").base}


def loaded(file: TokenizerFile) -> Any:
    return Tokenizer.from_buffer(file.source)


def test_clip_and_t5_are_tokenized_as_transformers_does(folders: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    limits = _limits(20)
    files = FLUX.tokenizers(folders["flux"], limits)
    for name, folder, length in (("clip", "tokenizer", 77), ("t5", "tokenizer_2", 20)):
        truth = AutoTokenizer.from_pretrained(folders["flux"] / folder, local_files_only=True)
        spec = files[name].spec
        assert (spec.file, spec.max_tokens, spec.pad_id) == (f"tokenizers/{name}.json", length, truth.pad_token_id)
        assert (spec.template, spec.drop, spec.pad) == ("", 0, "max")
        for caption in CAPTIONS:
            assert loaded(files[name]).encode(caption).ids == truth(caption).input_ids
    assert files["t5"].source == (folders["flux"] / "tokenizer_2" / "tokenizer.json").read_bytes()


def test_qwen_wraps_prompts_as_the_pipeline_does(folders: dict[str, Path]) -> None:
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline.from_pretrained(folders["qwen"], local_files_only=True)
    file = QWEN.tokenizers(folders["qwen"], _limits(512))["text"]
    assert file.spec.template == pipeline.prompt_template_encode
    assert file.spec.drop == pipeline.prompt_template_encode_start_idx
    assert pipeline.tokenizer_max_length == TEXT_TOKENS_MAX
    assert pipeline.tokenizer.padding_side == "right"
    assert (file.spec.max_tokens, file.spec.pad) == (512 + 34, "longest")
    assert file.spec.pad_id == pipeline.tokenizer.pad_token_id
    for caption in CAPTIONS:
        text = file.spec.template.format(caption)
        assert loaded(file).encode(text).ids == pipeline.tokenizer(text).input_ids


def test_a_conversion_gives_the_same_bytes_twice(folders: dict[str, Path]) -> None:
    one, other = (QWEN.tokenizers(folders["qwen"], _limits(9))["text"].source for _ in range(2))
    assert one == other


def test_more_text_than_the_pipeline_takes_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="at most 1024 text tokens; 1025"):
        QWEN.tokenizers(folders["qwen"], _limits(1025))


def test_a_tokenizer_that_does_not_fit_the_template_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="makes 34 tokens of the template's beginning, 33 were expected"):
        tokenizer_file("text", folders["qwen"] / "tokenizer", 64, TEMPLATE, 33, "longest")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vocab.json", None, "neither tokenizer.json nor vocab.json and merges.txt"),
        ("vocab.json", "{", "cannot be read"),
        ("tokenizer.json", "{}", "is damaged"),
        ("tokenizer_config.json", None, "there is no"),
        (
            "tokenizer_config.json",
            json.dumps({"tokenizer_class": "Qwen2Tokenizer", "pad_token": None}),
            "names no padding token",
        ),
    ],
)
def test_damaged_folders_are_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders["qwen"] / "tokenizer", folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ArcFlowError, match=message):
        tokenizer_file("text", folder, 64)


def _limits(text: int) -> Any:
    from engines.schema import Limits, Range

    return Limits(Range(1, 1, 4), Range(64, 64, 128), Range(64, 128, 128), Range(1, text, text), 16)
