"""Qwen2.5-VL's language model as Qwen-Image uses it: token ids to one vector a token. No vision tower, no logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.networks.base import TEXT_SIZES, Network, Sizes, as_port
from export.weights.files import Selected, open_folder

_PREFIXES = ("model.language_model.", "model.", "language_model.", "")
"""What transformers' versions put before the language model's names in a file of the whole model."""

_OTHERS = ("*visual.*", "*lm_head.*")
"""Weights of the whole model that encoding text has no part in; a seventh of the published one."""

_FULL = "full_attention"


class _Rope(nn.Module):
    """Qwen2.5-VL's rotary embedding of text, its frequencies part of the graph (the original keeps them in a buffer).

    Text has one position on all three axes (frame, row, column), so the sections of the multimodal embedding fall
    together and leave the plain one. Angles are float32.
    """

    def __init__(self, width: int, theta: float) -> None:
        super().__init__()
        self.width = width
        self.theta = theta

    def forward(self, states: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions int64 [3, batch, tokens] -> (cosines, sines), each [batch, tokens, width] in states' dtype."""
        exponents = torch.arange(0, self.width, 2, dtype=torch.float32, device=states.device) / self.width
        angles = positions[0][..., None].float() * (1.0 / self.theta**exponents)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(states.dtype), both.sin().to(states.dtype)


class _Text(nn.Module):
    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        causal = positions[None, :] <= positions[:, None]
        allowed = causal[None, None] & attention_mask.bool()[:, None, None, :]
        # A mask that is ready, for each kind of layer, is taken as it is.
        states = self.network(
            input_ids=input_ids,
            attention_mask={_FULL: allowed},
            position_ids=positions[None],
            use_cache=False,
        ).last_hidden_state
        return (as_port(states),)


def qwen_text_network(folder: Path) -> Network:
    """The network of the Qwen2.5-VL saved in ``folder``.

    input_ids int64 [batch, text_tokens], attention_mask int64 [batch, text_tokens] (1 = token, 0 = padding, which must
    be on the right) -> sequence float32 [batch, text_tokens, width]: the hidden states after the final norm, which
    are transformers' ``hidden_states[-1]``. Rows of padding hold nothing of use.

    Raises ExportError for a configuration whose text path is not plain causal attention with the default rotary
    embedding.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    config = _read_config(folder)
    heads, theta = int(config.num_attention_heads), float(config.rope_parameters["rope_theta"])
    width, vocabulary = int(config.hidden_size), int(config.vocab_size)

    def build(dtype: torch.dtype) -> nn.Module:
        network: Any = Qwen2_5_VLTextModel(config)
        network.rotary_emb = _Rope(width // heads, theta)
        return _Text(network, dtype)

    def reference() -> Callable[..., Sequence[Tensor]]:
        load = Qwen2_5_VLForConditionalGeneration.from_pretrained
        model = load(folder, local_files_only=True, dtype=torch.float32).eval()

        def run(input_ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
            output = model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return (output.hidden_states[-1],)

        return run

    def examples(sizes: Sizes, generator: torch.Generator) -> dict[str, Tensor]:
        batch, tokens = sizes["batch"], sizes["text_tokens"]
        lengths = torch.randint(1, tokens + 1, (batch, 1), generator=generator)
        lengths[0] = tokens
        return {
            "input_ids": torch.randint(vocabulary, (batch, tokens), generator=generator),
            "attention_mask": (torch.arange(tokens) < lengths).long(),
        }

    return Network(
        name="text",
        ports_in={
            "input_ids": ("int64", ("batch", "text_tokens")),
            "attention_mask": ("int64", ("batch", "text_tokens")),
        },
        ports_out={"sequence": ("float32", ("batch", "text_tokens", width))},
        bounds={"batch": (1, 1024), "text_tokens": (1, 4096)},
        build=build,
        weights=Selected(open_folder(folder), _OTHERS, without=True),
        aliases=lambda name: tuple(prefix + name for prefix in _PREFIXES),
        reference=reference,
        examples=examples,
        parity_sizes=TEXT_SIZES,
        fp8_weights=("layers.*.mlp.*_proj.weight",),  # Attention's cost twice as much (docs/log.md).
    )


def _read_config(folder: Path) -> Any:
    """The configuration of the language model."""
    from transformers import Qwen2_5_VLConfig

    from export.sources.configs import read_json

    kind = read_json(folder / "config.json").get("model_type")
    if kind != "qwen2_5_vl":
        raise ExportError(f"{folder}/config.json is of a {kind!r}; Qwen-Image's text encoder is a 'qwen2_5_vl'")
    config = Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True).text_config
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        raise ExportError(f"{folder}/config.json asks for rotary embeddings of type {rope!r}; only 'default' is known")
    if set(config.layer_types) != {_FULL}:
        raise ExportError(f"{folder}/config.json has layers of sliding attention; only full attention is known")
    return config
