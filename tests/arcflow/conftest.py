"""A real FluxPipeline folder, smaller still than tiny and with random weights, made once per session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arcflow.recipe import Recipe, TransformerSize, load_recipe

SIZE = TransformerSize(heads=2, head_dim=32, double_blocks=1, single_blocks=2, rope=(8, 12, 12))


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
