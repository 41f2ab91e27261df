"""The stages that make the embedded teacher, each resumable: VAE, flow matching, guidance, pipeline, classifier."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

from arcflow.errors import CheckpointError
from arcflow.recipe import LoopConfig, Recipe, TeacherRecipe, own_teacher
from arcflow.sources.digest import digest_of
from arcflow.tiny.captions import training_captions
from arcflow.tiny.classifier import Classifier, classifier_step
from arcflow.tiny.images import Emoji, concepts, load_emoji
from arcflow.tiny.latents import EmojiLatents, encode_variants
from arcflow.tiny.teacher import (
    SIDE,
    Latents,
    TeacherNetworks,
    build_transformer,
    flow_step,
    guidance_step,
)
from arcflow.tiny.text import (
    TextEncoders,
    build_clip_encoder,
    build_clip_tokenizer,
    build_t5_encoder,
    build_t5_tokenizer,
    encode,
    tokenize,
)
from arcflow.tiny.vae import build_vae, vae_step
from arcflow.training.loop import Step, fit
from arcflow.training.precision import settle
from arcflow.training.progress import reporting
from arcflow.training.run import DTYPES
from foundation.files import atomic_directory, atomic_file

PIPELINE = "teacher"
MODELS = Path(__file__).parents[2] / "models"
CLASSIFIER = "classifier.safetensors"


def train_teacher(recipe: Recipe, workdir: Path, data: Path | None = None, vae: Path | None = None) -> Path:
    """Run every stage that is not complete yet and return the FluxPipeline folder ``workdir/teacher``.

    vae: a trained one, a diffusers folder, in place of the recipe's. Raises RecipeError when the recipe has no
    [teacher] (a teacher that is downloaded, not trained), CheckpointError when there is no VAE of its form in ``vae``.
    """
    settings = own_teacher(recipe)
    emoji = load_emoji(data).without_held_out()
    train_classifier(settings.classifier, emoji, workdir)
    coder = _vae(settings, emoji, workdir, vae)
    networks, tokenizers = _train_networks(settings, recipe.shift, _latents(coder, emoji, workdir), coder, workdir)
    folder = workdir / PIPELINE
    with atomic_directory(folder) as temporary:
        pipeline = assemble_pipeline(networks, tokenizers, coder, recipe.shift)
        pipeline.to(dtype=DTYPES[settings.stored]).save_pretrained(temporary)
    return folder


def find_teacher(recipe: Recipe, workdir: Path) -> Path:
    """The teacher that was trained in ``workdir``, or else the committed one of that recipe's name."""
    trained = workdir / PIPELINE
    return trained if trained.is_dir() else MODELS / recipe.name / PIPELINE


def train_classifier(config: LoopConfig, images: Emoji, workdir: Path) -> Path:
    """Train the small classifier whose features and verdicts the evaluation uses; returns its weights' path."""
    from safetensors.torch import save_file

    path = workdir / CLASSIFIER
    if not path.is_file():
        torch.manual_seed(config.seed)
        model = Classifier(len(concepts()))
        _run("classifier", model, partial(classifier_step, images), config, workdir)
        with atomic_file(path) as temporary:
            save_file(model.state_dict(), temporary)
    return path


def _run(
    name: str,
    module: torch.nn.Module,
    step: Callable[[LoopConfig], Step],
    config: LoopConfig,
    workdir: Path,
    identity: str = "",
) -> None:
    """Train a stage's module, by the step for the config whose precision is decided; identity: see ``fit``."""
    config = settle(config, module, workdir / name, torch.device("cpu"), lambda line: sys.stderr.write(line + "\n"))
    with reporting(name, config.iterations, workdir / "logs") as report:
        fit(module, step(config), config, workdir / name, report=report, identity=identity)


def _vae(settings: TeacherRecipe, images: Emoji, workdir: Path, trained: Path | None) -> AutoencoderKL:
    """The VAE that is ``trained``, or else that of the recipe, trained here."""
    vae = _train_vae(settings, images, workdir) if trained is None else _open_vae(settings, trained)
    return vae.requires_grad_(False).eval()


def _open_vae(settings: TeacherRecipe, folder: Path) -> AutoencoderKL:
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except OSError as error:
        raise CheckpointError(
            f"no VAE in {folder}: give a diffusers folder, or leave --vae out to train one"
        ) from error
    found = len(vae.config.block_out_channels), vae.config.latent_channels
    wanted = len(settings.vae_channels), settings.latent_channels
    if found != wanted:
        raise CheckpointError(
            f"the VAE in {folder} has {found[0]} levels and {found[1]} channels: the recipe wants {wanted[0]} and "
            f"{wanted[1]}; give another, or leave --vae out to train one"
        )
    return vae


def _train_vae(settings: TeacherRecipe, images: Emoji, workdir: Path) -> AutoencoderKL:
    torch.manual_seed(settings.vae.seed)
    side = SIDE * 2 ** len(settings.vae_channels)
    vae = build_vae(settings.vae_channels, settings.latent_channels, side)
    _run("vae", vae, partial(vae_step, images), settings.vae, workdir)
    if settings.polish is not None:
        _run("polish", vae.train(), partial(vae_step, images), settings.polish, workdir)
    return vae


def _latents(vae: AutoencoderKL, emoji: Emoji, workdir: Path) -> EmojiLatents:
    """Encode every variant of every emoji once, and set the VAE's scale and shift so that they have unit variance."""
    cache = workdir / f"latents-{digest_of(vae.state_dict())[:16]}.pt"
    if not cache.is_file():
        encoded = encode_variants(vae, emoji)
        with atomic_file(cache) as temporary:
            torch.save(encoded, temporary)
    means, stds = _normalise(vae, *torch.load(cache, weights_only=True))
    return EmojiLatents(tuple(means), tuple(stds), emoji, emoji.captions())


def _normalise(vae: AutoencoderKL, means: list[Tensor], stds: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Set the VAE's scalar scale and shift so that latents of the usual size, the first, have unit variance."""
    shift, scale = means[0].mean(), 1.0 / (means[0].var() + stds[0].square().mean()).sqrt()
    vae.register_to_config(scaling_factor=round(float(scale), 6), shift_factor=round(float(shift), 6))
    scaling, centre = vae.config.scaling_factor, vae.config.shift_factor
    return [(mean - centre) * scaling for mean in means], [std * scaling for std in stds]


def _train_networks(
    settings: TeacherRecipe, shift: float, latents: Latents, vae: AutoencoderKL, workdir: Path
) -> tuple[TeacherNetworks, tuple[object, object]]:
    captions = training_captions()
    tokenizers = build_clip_tokenizer(captions, settings.pieces), build_t5_tokenizer(captions)
    table = tokenize(["", *captions], *tokenizers)
    identity = digest_of(vae.state_dict())
    torch.manual_seed(settings.flow.seed + 1)
    text = TextEncoders(build_clip_encoder(tokenizers[0]), build_t5_encoder(tokenizers[1]))
    networks = TeacherNetworks(build_transformer(settings.size, 4 * settings.latent_channels), text)
    _run(
        "flow",
        networks,
        partial(flow_step, latents, table, shift),
        settings.flow,
        workdir,
        identity,
    )
    networks.requires_grad_(False)
    base: FluxTransformer2DModel = copy.deepcopy(networks.transformer)
    networks.transformer.requires_grad_(True)
    step = partial(guidance_step, latents, table, base, encode(text, table), shift, settings.guidance_range)
    _run("guidance", networks.transformer, step, settings.guidance, workdir, identity)
    return networks.requires_grad_(False).eval(), tokenizers


def assemble_pipeline(
    networks: TeacherNetworks,
    tokenizers: tuple[object, object],
    vae: AutoencoderKL,
    shift: float,
) -> FluxPipeline:
    """The parts as one diffusers pipeline whose Euler sampler has a fixed shift."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=vae.to(memory_format=torch.contiguous_format),
        text_encoder=networks.text.clip,
        tokenizer=tokenizers[0],
        text_encoder_2=networks.text.t5,
        tokenizer_2=tokenizers[1],
        transformer=networks.transformer,
    )
