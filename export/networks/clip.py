"""CLIP's text model: token ids to the pooled vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.base import Network, Sizes, as_port
from export.weights.files import open_folder

_PREFIX = "text_model."
"""Older transformers saved the model under this name; newer ones load and save without."""


class _Clip(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.to(dtype)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        # Given, because the model's own is a buffer that no weights file holds.
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return (as_port(self.network(input_ids=input_ids, position_ids=positions).pooler_output),)


def clip_network(folder: Path) -> Network:
    """The network of a CLIP text model saved in ``folder``: input_ids int64 [batch, tokens] -> pooled [batch, width].

    tokens is fixed: the model's number of positions, to which every prompt is padded.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(folder)
    tokens, width = int(config.max_position_embeddings), int(config.hidden_size)
    # Published CLIP-L files name a wrong end token, 2; transformers then pools at the largest id of each prompt.
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id

    def reference() -> Callable[..., Sequence[Tensor]]:
        model = CLIPTextModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        return lambda input_ids: (model(input_ids).pooler_output,)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(config.vocab_size, (sizes["batch"], tokens), generator=generator)
        ids = torch.where(ids == end, ids - 1, ids)
        ends = torch.randint(1, tokens, (sizes["batch"], 1), generator=generator)
        ids = torch.where(torch.arange(tokens) >= ends, end, ids)
        return {"input_ids": ids}

    return Network(
        name="clip",
        ports_in={"input_ids": ("int64", ("batch", tokens))},
        ports_out={"pooled": ("float32", ("batch", width))},
        bounds={"batch": (1, 1024)},
        build=lambda dtype: _Clip(CLIPTextModel(config), dtype),
        weights=open_folder(folder),
        aliases=lambda name: (name, _PREFIX + name),
        reference=reference,
        examples=examples,
        parity_sizes=({"batch": 1}, {"batch": 2}, {"batch": 5}),
    )
