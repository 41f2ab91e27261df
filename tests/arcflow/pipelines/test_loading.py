"""What cannot become a student is one clear error, and the pipeline stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from arcflow.errors import AdapterError, BackboneError, PipelineError, SourceError
from arcflow.pipelines.loading import call_options, load_student
from foundation.errors import ArcFlowError
from tests.arcflow.pipelines.conftest import image_of, opened
from tests.export.pipelines import Sources, small_qwen


def test_what_to_call_each_with(sources: Sources) -> None:
    pipe = opened(sources.base)
    guidance = {"guidance_scale": 3.5} if type(pipe).__name__ == "FluxPipeline" else {"true_cfg_scale": 1.0}
    assert load_student(pipe, sources.adapter) == {"num_inference_steps": 2, **guidance}
    assert not any(p.requires_grad for p in pipe.transformer.parameters()) and not pipe.transformer.training


def test_weights_that_the_adapter_leaves_alone_are_not_copied(flux: Sources) -> None:
    pipe = opened(flux.base)
    before = pipe.transformer.x_embedder.weight.data_ptr()
    load_student(pipe, str(flux.adapter))
    assert pipe.transformer.x_embedder.weight.data_ptr() == before


def test_guidance_is_an_input_of_flux(flux: Sources) -> None:
    pipe = opened(flux.base)
    options = load_student(pipe, flux.adapter)
    changed = image_of(pipe, **{**options, "guidance_scale": 1.0})
    assert abs(changed - image_of(pipe, **options)).max() > 1 / 255


def test_a_negative_prompt_is_one_clear_error(sources: Sources) -> None:
    pipe = opened(sources.base)
    options = load_student(pipe, sources.adapter)
    with pytest.raises(PipelineError, match="no negative prompt"):
        image_of(pipe, **{**options, "true_cfg_scale": 4.0}, negative_prompt="blurred")


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _foreign_layer(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    pair = {f"nowhere.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file({**tensors, **pair}, file)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, SourceError, "there is no adapter at"),
        (_without_config, AdapterError, "config.json is missing"),
        (_foreign_layer, AdapterError, "nowhere is no linear"),
    ],
)
def test_a_damaged_adapter_leaves_the_pipeline_as_it_was(
    flux: Sources, tmp_path: Path, damage: Any, error: type[ArcFlowError], message: str
) -> None:
    folder = Path(shutil.copytree(flux.adapter, tmp_path / "adapter"))
    damage(folder)
    pipe = opened(flux.base)
    before = pipe.transformer, pipe.scheduler
    with pytest.raises(error, match=message):
        load_student(pipe, folder)
    assert (pipe.transformer, pipe.scheduler) == before
    with pytest.raises(PipelineError, match="holds no student"):
        call_options(pipe)


def test_an_adapter_of_the_other_family(flux: Sources, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="ArcFluxTransformer2DModel"):
        load_student(opened(flux.base), small_qwen(tmp_path).adapter)


def test_the_students_own_policy_is_taken(flux: Sources, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(flux.adapter, tmp_path / "adapter"))
    config = json.loads((folder / "config.json").read_text())
    policy = {"shift": 2.0, "guidance": 2.5, "nfe": 3, "final_step_ratio": 0.5, "conditioning_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps({**config, "arcflow_policy": policy}))
    pipe = opened(flux.base)
    assert load_student(pipe, folder) == {"num_inference_steps": 3, "guidance_scale": 2.5}
    assert dict(pipe.scheduler.config).items() >= policy.items()
    assert pipe.transformer.config.conditioning_dtype == "float32"


def test_pipelines_that_cannot_hold_a_student(flux: Sources) -> None:
    with pytest.raises(PipelineError, match="a SimpleNamespace cannot hold a student; allowed are FluxImg2ImgPipeline"):
        load_student(SimpleNamespace(), flux.adapter)
    pipe = opened(flux.base, transformer=None)
    with pytest.raises(PipelineError, match="no transformer"):
        load_student(pipe, flux.adapter)


def test_a_backbone_without_guidance(flux: Sources) -> None:
    pipe = opened(flux.base)
    pipe.transformer.register_to_config(guidance_embeds=False)
    with pytest.raises(BackboneError, match="guidance"):
        load_student(pipe, flux.adapter)


def test_a_transformer_that_was_changed_before(flux: Sources) -> None:
    from accelerate import cpu_offload

    pipe = opened(flux.base)
    load_student(pipe, flux.adapter)
    with pytest.raises(PipelineError, match="holds a student already"):
        load_student(pipe, flux.adapter)
    pipe = opened(flux.base)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with pytest.raises(PipelineError, match="then compile"):
        load_student(pipe, flux.adapter)
    pipe = opened(flux.base)
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    with pytest.raises(PipelineError, match="then offload"):
        load_student(pipe, flux.adapter)
    pipe = opened(flux.base)
    name = "transformer.transformer_blocks.0.attn.to_q"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    pipe.load_lora_weights(pair)
    with pytest.raises(PipelineError, match="LoRAs again"):
        load_student(pipe, flux.adapter)


def test_an_offloaded_student_makes_the_same_image(flux: Sources) -> None:
    """Layer by layer, as sequential offloading does it, with the CPU in the place of the GPU."""
    from accelerate import cpu_offload

    pipe = opened(flux.base)
    options = load_student(pipe, flux.adapter)
    plain = image_of(pipe, **options)
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    assert abs(image_of(pipe, **options) - plain).max() < 1e-5
