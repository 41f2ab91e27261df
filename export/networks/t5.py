"""T5's encoder: token ids to one vector a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.networks.base import TEXT_SIZES, Network, Sizes, as_port
from export.weights.files import open_folder

_EMBEDDING = "encoder.embed_tokens.weight"
_SHARED = "shared.weight"
"""Two names of one tensor; files hold the second."""


class _T5(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.to(dtype)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (as_port(self.network(input_ids=input_ids).last_hidden_state),)


def t5_network(folder: Path) -> Network:
    """The network of a T5 encoder saved in ``folder``.

    input_ids int64 [batch, text_tokens] -> sequence [batch, text_tokens, width]; padding is attended to, as
    FluxPipeline has it.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config.from_pretrained(folder)

    def reference() -> Callable[..., Sequence[Tensor]]:
        model = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        return lambda input_ids: (model(input_ids)[0],)

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        shape = (sizes["batch"], sizes["text_tokens"])
        return {"input_ids": torch.randint(config.vocab_size, shape, generator=generator)}

    return Network(
        name="t5",
        ports_in={"input_ids": ("int64", ("batch", "text_tokens"))},
        ports_out={"sequence": ("float32", ("batch", "text_tokens", int(config.d_model)))},
        bounds={"batch": (1, 1024), "text_tokens": (1, 4096)},
        build=lambda dtype: _T5(T5EncoderModel(config), dtype),
        weights=open_folder(folder),
        aliases=lambda name: (name, _SHARED) if name == _EMBEDDING else (name,),
        reference=reference,
        examples=examples,
        parity_sizes=TEXT_SIZES,
        fp8_weights=("encoder.block.*.DenseReluDense.*.weight",),  # Attention's cost twice as much (docs/log.md).
    )
