"""Small pipelines that LoRAs are merged into, and LoRAs for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.weights.files import open_folder
from export.weights.lora import StyleLora
from export.weights.merge import merge
from tests.export.pipelines import Sources, small_flux, small_qwen

FLUX_TARGETS = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v",
    "transformer_blocks.1.attn.to_out.0", "transformer_blocks.1.ff.net.0.proj", "transformer_blocks.0.norm1.linear",
    "single_transformer_blocks.0.proj_out", "x_embedder", "time_text_embed.timestep_embedder.linear_1",
)  # fmt: skip
QWEN_TARGETS = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj", "transformer_blocks.1.attn.to_add_out",
    "transformer_blocks.0.attn.to_out.0", "transformer_blocks.2.img_mlp.net.0.proj", "transformer_blocks.0.img_mod.1",
    "transformer_blocks.1.txt_mlp.net.2", "img_in",
)  # fmt: skip
TARGETS = {"flux": FLUX_TARGETS, "qwen": QWEN_TARGETS}
RANK = 3
ALPHA = 5.0


@dataclass(frozen=True)
class Bench:
    """A small pipeline's sources and what is needed to fuse a LoRA into its transformer."""

    name: str
    sources: Sources

    @property
    def folder(self) -> Path:
        return self.sources.base / "transformer"

    def transformer(self) -> Any:
        from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel

        kind = FluxTransformer2DModel if self.name == "flux" else QwenImageTransformer2DModel
        return kind.from_pretrained(self.folder, local_files_only=True)

    def shape(self, module: str) -> tuple[int, int]:
        weights = open_folder(self.folder)
        rows, columns = weights[f"{module}.weight"].shape
        return rows, columns

    def merged(self, *loras: StyleLora, base: Path | None = None) -> dict[str, Tensor]:
        weights = merge(base or self.folder, self.sources.adapter, loras).weights
        return {name: weights.read(name) for name in weights}


def make_benches(root: Path) -> dict[str, Bench]:
    """One a family."""
    made = {"flux": small_flux(root / "flux"), "qwen": small_qwen(root / "qwen")}
    return {name: Bench(name, sources) for name, sources in made.items()}


def factors(bench: Bench, targets: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    """Random pairs for these modules, by diffusers' names with the prefix."""
    generator, pairs = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for module in targets:
        rows, columns = bench.shape(module)
        pairs[f"transformer.{module}.lora_A.weight"] = 0.3 * torch.randn(RANK, columns, generator=generator)
        pairs[f"transformer.{module}.lora_B.weight"] = 0.3 * torch.randn(rows, RANK, generator=generator)
    return pairs


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path
