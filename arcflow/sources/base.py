"""A teacher's pipeline: its folder, checked before anything large is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from arcflow.errors import BackboneError, SourceError
from arcflow.recipe import Recipe
from arcflow.sources.hub import HubSource, place_of, resolve_base
from arcflow.students import architecture, architecture_of_pipeline

INDEX, CONFIG = "model_index.json", "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
BACKBONE, VAE = "transformer", "vae"
_LISTED = 3
AGAIN = "download the base again, or give another --base"


@dataclass(frozen=True)
class Base:
    """A diffusers pipeline on this machine whose configurations fit an architecture.

    config: the backbone's own; vae_factor: pixels along each side of a latent cell; place: on the hub, None for one
    that is known as a folder alone.
    """

    folder: Path
    architecture: ModuleType
    config: Mapping[str, Any]
    vae_factor: int
    place: HubSource | None = None

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens of an image. Raises BackboneError where they do not fill the size."""
        side = 2 * self.vae_factor
        if min(width, height) < side or width % side or height % side:
            raise BackboneError(
                f"the size {width}x{height} is not allowed with {self.folder}: both sides must be multiples of {side}"
            )
        return height // side, width // side

    def blank(self) -> Any:
        """The backbone on torch's meta device, frozen: shapes, no values. Raises BackboneError."""
        try:
            with torch.device("meta"):
                return self.architecture.build_backbone(self.config).requires_grad_(False)
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
            raise BackboneError(
                f"{self.folder / BACKBONE / CONFIG} describes no transformer of {self.architecture.NAME}: {error}; "
                f"{AGAIN}"
            ) from error


def find_base(source: str | Path, name: str) -> Base:
    """The pipeline in a folder or of a hub id (downloaded where it is not cached), of the architecture ``name``.

    Its headers are read, no weights. Raises SourceError where there is none, BackboneError where it is of another
    architecture, lacks a part, or is a variant that no student can be made of.
    """
    arch = architecture(name)
    folder = resolve_base(source, ())  # Small files alone: nothing large is downloaded of another architecture.
    if not (folder / INDEX).is_file():
        raise SourceError(f"{folder} is no diffusers pipeline: it has no {INDEX}; give --base a pipeline's folder")
    found = architecture_of_pipeline(str(read_json(folder / INDEX).get("_class_name")))
    if found is not arch:
        raise BackboneError(
            f"{folder} is a {found.PIPELINE_CLASS}, and the recipe's architecture is {name}; choose another --recipe "
            "or --base"
        )
    folder = resolve_base(source, (BACKBONE, VAE, *arch.TEXT_PARTS))
    vae = read_json(folder / VAE / CONFIG)
    try:
        factor = arch.vae_factor(vae)
    except KeyError as error:
        raise BackboneError(f"{folder / VAE / CONFIG} lacks {error}: this is no VAE of {name}; {AGAIN}") from error
    config = {k: v for k, v in read_json(folder / BACKBONE / CONFIG).items() if not k.startswith("_")}
    base = Base(folder, arch, config, factor, place_of(source))
    _check_weights(folder / BACKBONE, {key: tuple(value.shape) for key, value in base.blank().state_dict().items()})
    return base


def described_base(recipe: Recipe) -> Base | None:
    """The base that a recipe itself describes: nothing is read or downloaded, and its folder need not be there.

    None where the recipe describes none, or names a folder that is there, whose own configurations say more.
    """
    if recipe.backbone is None or recipe.base is None or Path(recipe.base).expanduser().exists():
        return None
    arch = architecture(recipe.architecture)
    return Base(Path(recipe.base), arch, recipe.backbone, arch.VAE_FACTOR)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BackboneError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(f"the base lacks {path}; {AGAIN}") from error
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot read {path}: {error}; {AGAIN}") from error
    if not isinstance(data, dict):
        raise BackboneError(f"{path} is not a JSON object; {AGAIN}")
    return data


def _check_weights(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the headers of a backbone's weights to its shapes. Raises BackboneError."""
    found: dict[str, tuple[int, ...]] = {}
    for name in weight_files(folder):
        if not (folder / name).is_file():
            raise BackboneError(f"{folder} lacks {name}; {AGAIN}")
        try:
            # As NumPy's, for torch maps a file so that the machine must have memory for all of it.
            with safe_open(folder / name, framework="np") as handle:
                found |= {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"{folder / name} is damaged or truncated ({error}); {AGAIN}") from error
    if any(".base_layer." in key for key in found):
        raise BackboneError(
            f"{folder} was saved with LoRAs still loaded: call unload_lora_weights() after fuse_lora(), then "
            "save_pretrained() again"
        )
    faults = {
        "lacks": wanted.keys() - found.keys(),
        "does not describe": found.keys() - wanted.keys(),
        "has in another shape": {key for key in wanted.keys() & found.keys() if wanted[key] != found[key]},
    }
    for fault, keys in faults.items():
        if keys:
            where = folder / CONFIG if fault == "does not describe" else folder
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            raise BackboneError(f"{where} {fault} {', '.join(sorted(keys)[:_LISTED])}{more}; {AGAIN}")


def weight_files(folder: Path) -> Iterable[str]:
    """The files that hold a backbone's weights: one, or the shards that an index names. Raises BackboneError."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return [WEIGHTS]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BackboneError(f"{index} names no shards; {AGAIN}")
    return sorted(set(map(str, shards.values())))
