"""The embedded default's images, captions, tokenizers and folder."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from arcflow.errors import CheckpointError, DatasetError
from arcflow.tiny.data import (
    CLASSES,
    HELD_OUT,
    TONES,
    all_captions,
    caption,
    evaluation_prompts,
    load_images,
)
from arcflow.tiny.teacher_folder import open_teacher
from arcflow.tiny.text import T5_TOKENS, build_clip_tokenizer, build_t5_tokenizer, tokenize


def write_split(folder: Path, prefix: str, count: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name, magic, array in (("images-idx3", 2051, pixels), ("labels-idx1", 2049, labels)):
        header = struct.pack(f">{1 + array.ndim}i", magic, *array.shape)
        (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def test_images_are_inverted_padded_and_scaled(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 20)
    images = load_images("train", tmp_path)
    assert len(images) == 20 and images.images.shape == (20, 1, 32, 32)
    rgb = images.rgb(torch.arange(3))
    assert rgb.shape == (3, 3, 32, 32) and bool((rgb[:, :, :2] == 1.0).all())
    assert float(rgb.min()) >= -1.0
    assert set(images.tones.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("keep", [0, 3, 10, 500])
def test_a_damaged_data_set_is_refused(tmp_path: Path, keep: int) -> None:
    write_split(tmp_path, "train", 5)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:keep]))
    with pytest.raises(DatasetError, match="install the package"):
        load_images("train", tmp_path)


def test_a_missing_data_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="make data"):
        load_images("train", tmp_path)
    with pytest.raises(DatasetError, match="choose train or test"):
        load_images("validation", tmp_path)


def test_held_out_pairs_are_never_named_in_training() -> None:
    rng = np.random.default_rng(0)
    seen = {caption(label, tone, rng) for label in range(10) for tone in range(3) for _ in range(200)}
    assert seen == set(all_captions(held_out=False))
    for tone, label in HELD_OUT:
        assert not any(f"{TONES[tone]} {noun}" in text for text in seen for noun in CLASSES[label])


def test_evaluation_prompts_are_balanced_and_new() -> None:
    prompts = evaluation_prompts(60)
    assert not {text for text, _, _ in prompts} & set(all_captions())
    assert len({(label, tone) for _, label, tone in prompts}) == 30
    assert prompts[0][0] == "picture of a dark t-shirt"


def test_tokenizers_know_every_word_of_the_captions_and_any_other_text() -> None:
    captions = ["", *all_captions()]
    clip, t5 = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    table = tokenize([*captions, "picture of a dark bag"], clip, t5)
    assert bool((table.t5 != t5.unk_token_id).all())
    assert int((table.t5 != 0).sum(dim=1).max()) < T5_TOKENS
    assert table.index["a bag"] == captions.index("a bag")
    odd = tokenize(["Zebra \u6f22\u5b57 \U0001f642 42%"], clip, t5)
    assert odd.clip.shape == (1, 24) and odd.t5.shape == (1, T5_TOKENS)


def test_the_stock_pipeline_opens_the_folder_and_agrees_with_our_sampler(teacher_path: Path) -> None:
    from diffusers import FluxPipeline

    from arcflow.architectures import flux
    from arcflow.sampling import sample_teacher

    pipeline = FluxPipeline.from_pretrained(teacher_path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    teacher = open_teacher(teacher_path)
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(3))
    stock = pipeline(
        "a dark bag", height=32, width=32, num_inference_steps=4, guidance_scale=2.0, max_sequence_length=T5_TOKENS,
        latents=noise, output_type="latent",
    ).images  # fmt: skip
    ours, _ = sample_teacher(flux, teacher.transformer, noise, teacher.condition(["a dark bag"], 2.0), 4, 1.7)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)
    assert teacher.decode(ours).shape == (1, 3, 32, 32)


def test_no_teacher_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m arcflow\.teacher"):
        open_teacher(tmp_path)
