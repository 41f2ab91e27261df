"""A distillation from a recipe and a base: what is to be trained and how, the same for every architecture and size."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from arcflow.errors import BackboneError, RecipeError
from arcflow.prompts.cache import Tell, cache_encodings
from arcflow.prompts.encodings import Encodings, LiveEncodings
from arcflow.prompts.lists import Prompts, digest
from arcflow.recipe import Recipe, StudentRecipe
from arcflow.sources.base import Base
from arcflow.sources.digest import digest_of
from arcflow.sources.pipeline import choose_device
from arcflow.sources.text import Placement, TextEncoders
from arcflow.sources.weights import empty_backbone, fill
from arcflow.students import LAST, Student
from arcflow.training.batches import prompted
from arcflow.training.distillation import ARCFLOW, Method, distill_step
from arcflow.training.sharding import shard
from arcflow.training.start import Start
from arcflow.training.watch import Watch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
"""What frozen weights are opened in and adapters saved in, by the recipe's name for what the weights are kept in."""


@dataclass(frozen=True)
class Distillation:
    """All that :func:`arcflow.training.loop.fit` needs: the module, its step, and the optimiser's groups.

    identity: digest of the base, the start, the prompts and the recipe, the loop's own settings left out; watch: looks
    at the student, where a folder was given to keep them.
    """

    student: Student
    step: Any
    groups: list[dict[str, Any]]
    identity: str
    watch: Watch | None = None


def choose_accelerator(device: str | None, sharded: bool = False) -> Accelerator:
    """The processes and their device: of this machine's GPUs where it has any, unless ``device`` names another.

    sharded: whether they will share the weights. Raises BackboneError where that device cannot be used, or Accelerate
    was told to wrap the model in its own way; RecipeError where there is nobody to share with.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise BackboneError(
                f"Accelerate is configured for {name}: take that out of its configuration, and add --shard to share "
                "the weights between GPUs"
            )
    accelerator = Accelerator(cpu=_is_cpu(device))
    if sharded and accelerator.num_processes == 1:
        raise RecipeError(
            "--shard shares the weights between several processes, and this is one: start it with `accelerate launch "
            "--multi_gpu --num_processes N -m arcflow.distill`, or leave --shard out"
        )
    return accelerator


def _is_cpu(device: str | None) -> bool:
    """Whether it is the CPU; a GPU that is named is made torch's own."""
    if device is None:
        return not torch.cuda.is_available()
    chosen = choose_device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise BackboneError(f"--device {device} is not supported; use cpu, cuda or cuda:NUMBER")
    if chosen.type == "cuda" and device != "cuda":
        torch.cuda.set_device(chosen)
    return chosen.type == "cpu"


def prepare(
    recipe: Recipe,
    base: Base,
    prompts: Prompts,
    student: StudentRecipe,
    accelerator: Accelerator,
    *,
    cache: Path | None = None,
    placement: Placement = "device",
    sharded: bool = False,
    start: Start | None = None,
    workdir: Path | None = None,
    tell: Tell = lambda line: None,
    method: Method = ARCFLOW,
) -> Distillation:
    """Open the base's backbone and make a student of it. Random draws come from the global generator, seeded here.

    cache: a folder that keeps the prompts' encodings, filled before the backbone is opened; else text encoders run as
    ``placement`` says. sharded: whether each process keeps, and reads, its share of the weights only. start: an adapter
    that the student begins with. workdir: keeps looks at the student; without it there are none. method: the student
    that is made, and its loss; the identity does not know it. Raises BackboneError, PromptsError.
    """
    if sharded and placement == "turns" and cache is None:
        raise BackboneError("--encoders turns cannot be had with --shard: give --cache-encodings, or --encoders cpu")
    settings, device = recipe.distill, accelerator.device
    dtype = DTYPES[settings.frozen]
    grids = [base.grid(*size) for size in settings.pixels]
    text = TextEncoders(base, settings.text_tokens, dtype, device, placement)
    cached = None
    if cache is not None:
        alone = text if placement == "cpu" else replace(text, placement="device")  # The backbone is not there yet.
        part = accelerator.process_index, accelerator.num_processes
        cached = cache_encodings(cache, prompts, alone, tell, part)
    accelerator.wait_for_everyone()
    backbone = empty_backbone(base, settings.frozen)
    fill(backbone, base, torch.device("cpu"), LAST)
    torch.manual_seed(settings.loop.seed)
    module = method.student(backbone, student, recipe.architecture)
    # By its last layers, which differ from one base to another of the same shape.
    teacher = digest_of(module.teacher_layers.state_dict())
    if start is not None:
        start.fill(module)
    if settings.checkpointing:
        module.backbone.enable_gradient_checkpointing()
    if settings.compile:
        module.backbone.compile_repeated_blocks()
    if sharded:
        shard(module, device, accelerator.num_processes)
    fill(module.backbone, base, device)
    module.filled()
    module.to(device)
    encodings: Encodings = cached if cached is not None else LiveEncodings(prompts, text, module)
    batches = prompted(base.architecture, encodings, (recipe.guidance_kind, recipe.guidance), grids)
    gammas = {id(parameter) for parameter in module.gamma_parameters()}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in gammas]},
        {
            "params": [parameter for parameter in trained if id(parameter) in gammas],
            "lr": settings.gamma_lr,
            "name": "lr_gammas",
        },
    ]
    step = distill_step(module, batches, recipe.shift, settings, method.loss)
    watch = None
    if workdir is not None:
        watch = Watch(recipe, base, module, prompts, encodings, teacher, accelerator, workdir)
    return Distillation(module, step, groups, _identity(recipe, student, prompts, teacher, start), watch)


def _identity(recipe: Recipe, student: StudentRecipe, prompts: Prompts, teacher: str, start: Start | None) -> str:
    free = dict.fromkeys(("loop", "checkpointing", "compile", "watch_every", "watch_images"))
    settings = {**asdict(recipe.distill), **free, "prompts": digest(prompts)}
    for name in ("several_nfe", "fp8_from"):  # Unset, the run is that of a recipe from before they were there.
        if not settings[name] and settings[name] != 0.0:
            del settings[name]
    if "fp8_from" in settings:  # A longer run would begin with FP8 at another iteration.
        settings["iterations"] = recipe.distill.loop.iterations
    begun = (teacher, start.digest if start is not None else None)
    known = (recipe.architecture, recipe.shift, recipe.guidance, student.settings(), sorted(settings.items()), begun)
    return sha256(repr(known).encode()).hexdigest()
