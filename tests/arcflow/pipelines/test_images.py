"""A student in diffusers' own pipeline makes the image that the project's own sampling makes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arcflow.pipelines.loading import call_options, load_student
from tests.arcflow.pipelines.conftest import PROMPT, SIDE, TOKENS, image_of, noise_of, opened, own_image
from tests.export.pipelines import Sources

STEP = 1 / 255


def apart(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize("nfe", [None, 1, 3])
def test_the_image_is_that_of_our_own_sampling(sources: Sources, nfe: int | None) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    assert options.pop("num_inference_steps") == 2
    image = image_of(pipe, num_inference_steps=nfe or 2, **options)
    assert image.std() > 0.01
    assert apart(image, own_image(sources, nfe)) < STEP


def test_two_evaluations_are_two_evaluations(sources: Sources) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    calls: list[Any] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    image_of(pipe, **options)
    assert len(calls) == 2


def test_a_pipeline_is_saved_and_opened_as_it_was(sources: Sources, tmp_path: Path) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    pipe.save_pretrained(tmp_path / "student", max_shard_size="100KB")
    again = opened(tmp_path / "student")
    assert call_options(again) == options
    assert type(again) is type(pipe) and type(again.transformer) is type(pipe.transformer)
    assert dict(again.scheduler.config).items() >= {"shift": 3.2, "nfe": 2, "final_step_ratio": 1.0}.items()
    assert apart(image_of(again, **options), image_of(pipe, **options)) < STEP / 10


def test_a_lora_beside_the_student_is_a_lora_merged(sources: Sources, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    plain = image_of(pipe, **options)
    generator = torch.Generator().manual_seed(3)
    name = "transformer_blocks.0.attn.to_q"
    rows, columns = pipe.transformer.get_submodule(name).weight.shape
    a = torch.randn(2, columns, generator=generator) / math.sqrt(columns)
    b = 3 * torch.randn(rows, 2, generator=generator)
    keys = {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
    save_file(keys, tmp_path / "style.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    styled = image_of(pipe, **options)
    assert apart(styled, plain) > STEP
    merged = own_image(sources, loras=lambda weights: weights[f"{name}.weight"].add_(b @ a))
    assert apart(styled, merged) < STEP
    pipe.set_adapters(["style"], [0.0])
    assert apart(image_of(pipe, **options), plain) < STEP / 10
    pipe.unload_lora_weights()
    assert apart(image_of(pipe, **options), plain) == 0


def test_a_callback_sees_the_latents_between_evaluations(sources: Sources) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    seen: list[torch.Tensor] = []

    def look(_: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        return given

    image_of(pipe, callback_on_step_end=look, **options)
    noise = noise_of(pipe)
    assert [x.shape for x in seen] == [noise.shape] * 2 and {x.dtype for x in seen} == {torch.float32}
    assert not torch.equal(seen[0], noise)


def test_several_images_at_once_are_the_images_one_by_one(sources: Sources) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    both = torch.cat([noise_of(pipe, 1), noise_of(pipe, 2)])
    size = {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS, "output_type": "np"}
    images = pipe([PROMPT] * 2, latents=both, **size, **options).images
    for row, seed in enumerate((1, 2)):
        assert apart(images[row], image_of(pipe, latents=noise_of(pipe, seed), **options)) < STEP


def test_half_precision_keeps_the_latents_dtype(sources: Sources) -> None:
    pipe = opened(sources.base, dtype=torch.bfloat16)
    options = load_student(pipe, sources.adapter)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.bfloat16}
    latents = noise_of(pipe).bfloat16()
    there = pipe(PROMPT, height=SIDE, width=SIDE, max_sequence_length=TOKENS, latents=latents, output_type="latent",
                 **options).images  # fmt: skip
    assert there.dtype == torch.bfloat16 and torch.isfinite(there.float()).all()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_image_to_image_begins_at_a_noise_level_of_the_student(sources: Sources, strength: float) -> None:
    from diffusers import AutoPipelineForImage2Image

    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    options["true_cfg_scale"] = 1.0
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert call_options(other).items() <= options.items()
    given = torch.linspace(0, 1, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)
    calls: list[float] = []
    other.transformer.register_forward_pre_hook(
        lambda _, inputs, words: calls.append(float(words["timestep"][0])), with_kwargs=True
    )
    images = [
        other(PROMPT, image=given, strength=strength, height=SIDE, width=SIDE, max_sequence_length=TOKENS,
              generator=torch.Generator().manual_seed(seed), output_type="np", **options).images[0]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    levels = [1.0, 0.76171875][2 - round(2 * strength) :]  # 16/21 as bfloat16 has it
    assert calls == pytest.approx(levels * 3, rel=1e-6)
    assert apart(images[0], images[1]) == 0 and apart(images[0], images[2]) > STEP


@pytest.mark.parametrize("made", ["flux", "qwen"])
def test_inpainting_leaves_what_the_mask_leaves(made: str, tmp_path: Path) -> None:
    import diffusers

    from tests.arcflow.pipelines.conftest import MAKERS

    folders = MAKERS[made](tmp_path)
    name = {"flux": "FluxInpaintPipeline", "qwen": "QwenImageInpaintPipeline"}[made]
    pipe = getattr(diffusers, name).from_pretrained(folders.base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    options = load_student(pipe, folders.adapter)
    given = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    there = [
        pipe(PROMPT, image=given, mask_image=m, strength=1.0, height=SIDE, width=SIDE, max_sequence_length=TOKENS,
             generator=torch.Generator().manual_seed(2), output_type="latent", **options).images
        for m in (mask, torch.zeros_like(mask))
    ]  # fmt: skip
    side = SIDE // (2 * pipe.vae_scale_factor)
    half, none = (x.reshape(side, side, -1) for x in there)
    torch.testing.assert_close(half[:, side // 2 :], none[:, side // 2 :])
    assert (half[:, : side // 2] - none[:, : side // 2]).abs().max() > 0.01


def test_a_compiled_transformer_is_one_graph(flux: Sources) -> None:
    pipe = opened(flux.base)
    options = load_student(pipe, flux.adapter)
    plain = image_of(pipe, **options)
    pipe.transformer.compile(backend="eager", fullgraph=True)
    assert apart(image_of(pipe, **options), plain) < STEP / 10
