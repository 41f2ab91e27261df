"""Distillation of FLUX at true size, random weights: seconds an iteration, and memory beside what the dry run says."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from foundation.measuring import timing
from gpu.catalogue import Options
from gpu.device import torch_device
from gpu.records import Emit, Printer, guarded

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from arcflow.recipe import Recipe

WARM_UP, ITERATIONS = 1, 3
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as the recipe says", {}),
    ("frozen in FP8", {"frozen": "fp8"}),
    ("blocks compiled", {"compile": True}),
)
"""What is changed of the recipe's settings, the most telling first."""


def run(printer: Printer, options: Options) -> None:
    """Some iterations of one micro-batch, each way, most telling first."""
    where = torch_device(options)
    for name, changes in WAYS[: options.pick(len(WAYS), 1, 1)]:
        guarded(printer, name, partial(measure, printer, options, name, changes, where))


def measure(emit: Emit, options: Options, name: str, changes: dict[str, Any], where: str) -> None:
    """One way: the median iteration, and the most memory that torch had given out."""
    import torch

    recipe, grid = sized(options, changes)
    told = needs(recipe, grid)
    times: list[float] = []
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    losses = train(recipe, grid, torch.device(where), options.out / "training", times)
    each = timing([b - a for a, b in itertools.pairwise(times)][WARM_UP - 1 :])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    batch, rate = recipe.distill.loop.batch, told.operations / each.median_s
    emit(
        f"distillation of FLUX, {name}",
        f"{each.median_s:.2f} s an iteration of {batch} images, {rate / 1e12:.0f} TFLOP/s; peak {peak / 1e9:.1f} GB, "
        f"the dry run says {told.total / 1e9:.1f}",
        held=None if not peak else abs(peak - told.total) <= 0.1 * told.total,
        iteration=asdict(each),
        peak_bytes=peak,
        told=asdict(told),
        losses=losses,
    )


def sized(options: Options, changes: dict[str, Any]) -> tuple[Recipe, tuple[int, int]]:
    """The recipe ``flux``, one micro-batch an iteration, and the grid of tokens; toy sizes where it is rehearsed."""
    from arcflow.recipe import load_recipe

    recipe = load_recipe("flux")
    batch = options.pick(recipe.distill.loop.micro_batch or 1, 1, 1)
    loop = replace(recipe.distill.loop, batch=batch, iterations=WARM_UP + ITERATIONS, save_every=1_000_000)
    recipe = replace(recipe, distill=replace(recipe.distill, loop=loop, **changes))
    if options.rehearse:
        small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32,
                 "joint_attention_dim": 24, "pooled_projection_dim": 8, "axes_dims_rope": [8, 12, 12]}  # fmt: skip
        student = replace(recipe.student, rank=2, modes=2)
        recipe = replace(recipe, backbone={**(recipe.backbone or {}), **small}, student=student)
    return recipe, options.pick((64, 64), (64, 64), (4, 4))


def needs(recipe: Recipe, grid: tuple[int, int]) -> Any:
    """What the dry run says of an iteration."""
    import torch

    from arcflow.needs.iteration import Outline
    from arcflow.students import architecture

    with torch.device("meta"):
        backbone = architecture(recipe.architecture).build_backbone(recipe.backbone).requires_grad_(False)
    return Outline(recipe, backbone, grid).needs(recipe.distill.loop)


def train(recipe: Recipe, grid: tuple[int, int], device: torch.device, work: Path, times: list[float]) -> list[float]:
    """Distil a random backbone with random encodings; the losses. times gets the clock after every iteration."""
    import shutil

    import torch
    from accelerate import Accelerator, init_empty_weights

    from arcflow.architectures import flux
    from arcflow.sources.stored import as_frozen
    from arcflow.students import LAST, Student, architecture
    from arcflow.training.batches import Batch, Generators, normal
    from arcflow.training.distillation import distill_step
    from arcflow.training.loop import Iteration, fit

    with init_empty_weights():
        backbone: Any = architecture(recipe.architecture).build_backbone(recipe.backbone).requires_grad_(False).eval()
    as_frozen(backbone, recipe.distill.frozen)
    config, tokens = backbone.config, recipe.distill.text_tokens
    for layer in LAST:
        _randomise(getattr(backbone, layer), torch.device("cpu"))
    student = Student(backbone, recipe.student, recipe.architecture)
    _randomise(student, device)
    student.to(device)
    if recipe.distill.checkpointing:
        student.backbone.enable_gradient_checkpointing()
    if recipe.distill.compile:
        student.backbone.compile_repeated_blocks()

    def batch(_: Iteration, generators: Generators) -> Batch:
        text = normal(generators, config.pooled_projection_dim), normal(generators, tokens, config.joint_attention_dim)
        guidance = torch.full((len(generators),), recipe.guidance)
        return Batch(flux.Condition(*text, guidance, flux.image_ids(*grid), torch.zeros(tokens, 3)))

    losses: list[float] = []

    def report(_: int, figures: dict[str, float], grid: object = None) -> None:
        losses.append(figures["loss"])
        times.append(time.perf_counter())  # The loss is on the host: the iteration is over but for AdamW.

    step = distill_step(student, batch, recipe.shift, recipe.distill)
    try:
        fit(student, step, recipe.distill.loop, work, accelerator=Accelerator(cpu=device.type == "cpu"), report=report,
            stop_after=recipe.distill.loop.iterations - 1)  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return losses


def _randomise(root: torch.nn.Module, device: torch.device) -> None:
    """Random values for what is on the meta device, so large that activations keep their size."""
    import torch

    from arcflow.sources.stored import Fp8Linear

    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            values = torch.ones(parameter.shape, device=device)
            if parameter.ndim == 2 and name == "weight":
                values = torch.randn(parameter.shape, device=device) / parameter.shape[1] ** 0.5
            elif name == "bias":
                values = torch.zeros(parameter.shape, device=device)
            if isinstance(module, Fp8Linear) and name == Fp8Linear.SCALE:
                values = values / 100
            elif isinstance(module, Fp8Linear) and name == "weight":
                values = values * 100
            module._parameters[name] = torch.nn.Parameter(values.to(parameter.dtype), requires_grad=False)
