"""The embedded teacher as it lies on disk: an ordinary FluxPipeline folder, opened part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from arcflow.architectures.flux import Condition, unpack
from arcflow.errors import CheckpointError
from arcflow.tiny.teacher import SIDE as SIDE
from arcflow.tiny.teacher import USUAL, Grid, condition_of
from arcflow.tiny.text import TextEncoders, encode, tokenize
from foundation.files import sha256_tree


@dataclass(frozen=True)
class TeacherFolder:
    """An opened teacher. digest: of the folder's content; every network is frozen and in evaluation mode."""

    path: Path
    digest: str
    transformer: nn.Module
    vae: Any
    text: TextEncoders
    tokenizers: tuple[Any, Any]

    @property
    def packed_channels(self) -> int:
        """Channels of a packed token."""
        return int(self.transformer.config.in_channels)  # type: ignore[union-attr,arg-type]

    def condition(self, prompts: Sequence[str], guidance: float, grid: Grid = USUAL) -> Condition:
        """The condition of these prompts [B] at one guidance, for images whose tokens lie in that grid."""
        pooled, sequence = encode(self.text, tokenize(list(prompts), *self.tokenizers))
        return condition_of(pooled, sequence, torch.full((pooled.shape[0],), guidance), grid)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Packed latents [B, 16, C] -> images [B, 3, 64, 64] in [-1, 1]."""
        config = self.vae.config
        latents = unpack(tokens, SIDE, SIDE) / config.scaling_factor + config.shift_factor
        images: Tensor = self.vae.decode(latents).sample
        return images.clamp(-1.0, 1.0)


def open_teacher(path: Path) -> TeacherFolder:
    """Open a teacher saved by :mod:`arcflow.teacher`. Raises CheckpointError when there is none."""
    if not (path / "model_index.json").is_file():
        raise CheckpointError(f"no teacher at {path}: run `python -m arcflow.teacher`, or give --teacher FOLDER")
    pipeline = FluxPipeline.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    for part in (
        pipeline.transformer,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.text_encoder_2,
    ):
        part.requires_grad_(False).eval()
    return TeacherFolder(
        path=path,
        digest=sha256_tree(path),
        transformer=pipeline.transformer,
        vae=pipeline.vae,
        text=TextEncoders(pipeline.text_encoder, pipeline.text_encoder_2),
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
    )
