"""Names and shapes of the published files at true size, from the models' own classes built without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parent / "models"
RANK = 256
"""Rank of the released adapters."""

Shapes = Mapping[str, tuple[int, ...]]

_LORA = {
    "flux": (
        "proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        "timestep_embedder.linear_1", "timestep_embedder.linear_2",
    ),
    "qwen": (
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
        "timestep_embedder.linear_1", "timestep_embedder.linear_2",
    ),
}  # fmt: skip
"""Suffixes of the linears that the released adapters change."""


@dataclass(frozen=True)
class Model:
    """A published model: its name ("flux" or "qwen") and the content of its configuration files, by path."""

    name: str
    files: Mapping[str, Mapping[str, Any]]

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component's folder ("transformer", "vae", ...)."""
        return dict(self.files[f"{component}/config.json"])

    @property
    def components(self) -> list[str]:
        """Folders that hold weights, without the adapter's."""
        folders = [path.split("/")[0] for path in self.files if path.endswith("/config.json")]
        return [folder for folder in folders if folder != "adapter"]


def published(name: str) -> Model:
    """The model ``name`` ("flux": FLUX.1-dev, "qwen": Qwen-Image) as its repository configures it."""
    return Model(name, json.loads((MODELS / f"{name}.json").read_text()))


def component_shapes(model: Model, component: str) -> Shapes:
    """Every tensor of a component's weights file, in the module's order, under the published file's names."""
    import torch

    with torch.device("meta"):
        module = _module(model, component)
    rename = _RENAMES.get((model.name, component), str)
    tied = {"encoder.embed_tokens.weight"}  # T5's file has it once, as shared.weight.
    return {rename(key): tuple(value.shape) for key, value in module.state_dict().items() if key not in tied}


def adapter_shapes(model: Model, transformer: Shapes, rank: int = RANK) -> Shapes:
    """Every tensor of a released-format adapter of that rank for a transformer of those shapes."""
    modes = int(model.config("adapter")["num_gaussians"])
    dead = _dead_text_branch(transformer) if model.name == "qwen" else None
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in transformer.items():
        module = key.removesuffix(".weight")
        if not key.endswith(".weight") or not module.endswith(tuple("." + target for target in _LORA[model.name])):
            continue
        if dead is None or not module.startswith(dead):
            shapes[f"{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"{module}.lora_B.weight"] = (shape[0], rank)
    packed, width = transformer["proj_out.weight"]
    rows = {
        "norm_out.linear": 2 * width,
        "proj_out_means": modes * packed,
        "proj_out_logweights": modes * 4,
        "proj_out_loggamma": (modes - 1) * 4,
    }
    for module, count in rows.items():
        shapes[f"{module}.weight"], shapes[f"{module}.bias"] = (count, width), (count,)
    return shapes


def _dead_text_branch(transformer: Shapes) -> str:
    """Prefix of the last block's text MLP, which feeds nothing and is therefore not in the released adapter."""
    last = max(int(key.split(".")[1]) for key in transformer if key.startswith("transformer_blocks."))
    return f"transformer_blocks.{last}.txt_mlp."


def _module(model: Model, component: str) -> Any:
    """The component without weights, of the class that the model's index names."""
    library, name = model.files["model_index.json"][component]
    kind = getattr(import_module(library), name)
    config = model.config(component)
    return kind.from_config(config) if library == "diffusers" else kind(kind.config_class(**config))


def _clip_name(key: str) -> str:
    return f"text_model.{key.removeprefix('text_model.')}"


def _qwen_name(key: str) -> str:
    return key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


_RENAMES: Mapping[tuple[str, str], Callable[[str], str]] = {
    ("flux", "text_encoder"): _clip_name,
    ("qwen", "text_encoder"): _qwen_name,
}
