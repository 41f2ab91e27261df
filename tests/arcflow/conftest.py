"""A real FluxPipeline folder, smaller still than tiny and with random weights, made once per session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arcflow.recipe import Recipe, TransformerSize, load_recipe

SIZE = TransformerSize(heads=2, head_dim=32, double_blocks=1, single_blocks=2, rope=(8, 12, 12))
TABLE = """1f415: dog, pet, hound
1f468-200d-1f373 *: man cook
1f469-200d-1f373 *: woman cook
1f9d1-200d-1f373 *: cook
2764: red heart
"""


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from arcflow.tiny.captions import training_captions
    from arcflow.tiny.images import SIZE as PIXELS
    from arcflow.tiny.stages import assemble_pipeline
    from arcflow.tiny.teacher import TeacherNetworks, build_transformer
    from arcflow.tiny.text import (
        TextEncoders,
        build_clip_encoder,
        build_clip_tokenizer,
        build_t5_encoder,
        build_t5_tokenizer,
    )
    from arcflow.tiny.vae import build_vae

    torch.manual_seed(0)
    captions = ["", *training_captions()]
    tokenizers = build_clip_tokenizer(captions), build_t5_tokenizer(captions)
    transformer = build_transformer(SIZE, 64)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    text = TextEncoders(build_clip_encoder(tokenizers[0]), build_t5_encoder(tokenizers[1]))
    vae = build_vae((8, 16, 16, 16), 16, PIXELS)
    pipeline = assemble_pipeline(TeacherNetworks(transformer, text), tokenizers, vae, 1.7)
    folder = tmp_path_factory.mktemp("teacher")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small data set: a dog, a heart, a cook of three genders in all tones, and a picture that no line names."""
    from PIL import Image, ImageDraw

    from arcflow.tiny.captions import subjects

    table = tmp_path / "subjects.txt"
    table.write_text(TABLE)
    monkeypatch.setattr("arcflow.tiny.captions.SUBJECTS", table)
    monkeypatch.setattr("arcflow.tiny.captions.HELD_OUT_SHARE", 0.4)
    root = tmp_path / "images"
    root.mkdir()
    for number, code in enumerate([*subjects(), "1f595"]):
        picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        ImageDraw.Draw(picture).rectangle((64, 32, 160, 224), fill=(200, 10 * number, 30, 255))
        picture.save(root / f"{code.replace('2764', '2764-fe0f')}.webp", lossless=True)
    return root


@pytest.fixture
def recipe() -> Recipe:
    """The embedded default's recipe, cut to a few iterations and a small student, the same on every processor."""
    recipe = load_recipe("tiny")
    loop = replace(recipe.distill.loop, iterations=6, batch=4, save_every=2, warmup=2, precision="bf16")
    return replace(
        recipe,
        student=replace(recipe.student, rank=2, modes=3),
        distill=replace(recipe.distill, loop=loop, teacher_share_iterations=4),
        evaluate=replace(recipe.evaluate, seeds=6, reference_steps=10),
    )
