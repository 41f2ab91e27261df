"""Putting a student into a diffusers pipeline: ``load_student(pipe, adapter)``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from arcflow.adapter import merge_into, read_adapter
from arcflow.architectures import flux, qwen
from arcflow.errors import PipelineError
from arcflow.pipelines.scheduler import ArcFlowScheduler
from arcflow.pipelines.students import STUDENTS
from arcflow.sources.hub import resolve_adapter
from arcflow.students import Coverage, architecture_of_adapter

_PIPELINES: dict[str, ModuleType] = {
    **dict.fromkeys((flux.PIPELINE_CLASS, "FluxImg2ImgPipeline", "FluxInpaintPipeline"), flux),
    **dict.fromkeys((qwen.PIPELINE_CLASS, "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"), qwen),
}
"""Pipelines that feed a backbone what it was trained on."""


def load_student(pipe: Any, adapter: str | Path, coverage: Coverage = "whole") -> dict[str, Any]:
    """Make the student of that adapter out of the pipeline's transformer, and give the pipeline its scheduler.

    pipe: a diffusers pipeline of FLUX.1-dev or Qwen-Image, text or image to image or inpainting, in any floating-point
    dtype and on any device; it is changed in place, and its class stays what it is. adapter: a folder or a hub id, in
    the released format or written by ``arcflow.distill``. coverage: "partial" takes an adapter that lacks LoRA pairs.

    The adapter's LoRA is merged, in float32, so that ``pipe.load_lora_weights`` has the names to itself. Do this first,
    then load LoRAs, offload or compile. Weights that the adapter leaves alone are not copied.

    Returns what to call the pipeline with (:func:`call_options`): ``pipe("a prompt", **load_student(pipe, folder))``.
    Raises PipelineError for another pipeline, SourceError where there is no adapter, AdapterError for one that is
    damaged or belongs to another base; the pipeline is then as it was.
    """
    arch = _architecture(pipe)
    teacher = pipe.transformer
    _check_teacher(teacher)
    folder = resolve_adapter(adapter)
    read = read_adapter(folder)
    if architecture_of_adapter(read.config.class_name) is not arch:
        raise PipelineError(
            f"{folder} is an adapter for {read.config.class_name}, and the pipeline is a {type(pipe).__name__}; "
            f"give an adapter of class {arch.ADAPTER_CLASS}"
        )
    policy = read.config.policy
    config = {name: value for name, value in teacher.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        arch.build_backbone(config)  # raises for variants that students are not made of
    with init_empty_weights():
        student: Any = STUDENTS[arch.NAME].from_config(  # type: ignore[attr-defined]
            {**config, "modes": read.config.modes, "conditioning_dtype": policy.conditioning_dtype}
        )
    merge_into(student, teacher.state_dict(), read, coverage, assign=True)
    scheduler = ArcFlowScheduler(**asdict(policy))
    pipe.register_modules(transformer=student.requires_grad_(False).eval(), scheduler=scheduler)
    return call_options(pipe)


def call_options(pipe: Any) -> dict[str, Any]:
    """What to call a pipeline with that holds a student, also one opened by ``from_pretrained``.

    ``num_inference_steps``, the student's number of evaluations, which a pipeline has another default for; and FLUX's
    ``guidance_scale``, or for Qwen-Image ``true_cfg_scale`` of 1: its guidance is built in. Raises PipelineError where
    the pipeline holds no student.
    """
    arch = _architecture(pipe)
    if not isinstance(pipe.scheduler, ArcFlowScheduler):
        raise PipelineError("the pipeline holds no student; call load_student(pipe, adapter) first")
    config = pipe.scheduler.config
    guidance = {"true_cfg_scale": 1.0} if arch is qwen else {"guidance_scale": config.guidance}
    return {"num_inference_steps": config.nfe, **guidance}


def _architecture(pipe: Any) -> ModuleType:
    name = type(pipe).__name__
    if name not in _PIPELINES:
        raise PipelineError(f"a {name} cannot hold a student; allowed are {', '.join(sorted(_PIPELINES))}")
    return _PIPELINES[name]


def _check_teacher(teacher: Any) -> None:
    """Raise PipelineError unless the transformer is the base's own, whole and untouched."""
    if not isinstance(teacher, nn.Module):
        raise PipelineError("the pipeline has no transformer; open it with one")
    if isinstance(teacher, tuple(STUDENTS.values())):
        raise PipelineError("the pipeline holds a student already; open the base again to load another")
    if hasattr(teacher, "_orig_mod"):
        raise PipelineError("the transformer is compiled; load the student first, then compile")
    if getattr(teacher, "peft_config", None):
        raise PipelineError("LoRAs are loaded; call unload_lora_weights, load the student, then the LoRAs again")
    offloaded = hasattr(teacher, "_hf_hook") or hasattr(teacher, "_diffusers_hook")
    if offloaded or any(p.is_meta for p in teacher.parameters()):
        raise PipelineError("the transformer is offloaded; load the student first, then offload")
    kinds = {str(p.dtype).removeprefix("torch.") for p in teacher.parameters()}
    if not kinds <= {"float32", "float16", "bfloat16"}:
        raise PipelineError(
            f"the transformer's weights are {', '.join(sorted(kinds))}: quantised weights cannot take an adapter; "
            "open the base in float32, float16 or bfloat16"
        )
