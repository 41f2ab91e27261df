"""Twins: a pipeline's own classes and switches at a fraction of its size, with random weights and a random adapter.

What cannot be run where it is built is held to torch by its twin, which goes through the very same code: parity is a
property of graph and arithmetic, and these are the same in two blocks as in sixty. A twin keeps everything that
changes the graph (classes, activations, kinds of norm, head widths, rotary axes, embedded guidance, levels of the VAE,
modes of the head) and shrinks what only repeats or widens it (blocks, heads, widths, vocabularies, the LoRA's rank).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.sources.configs import read_json

if TYPE_CHECKING:
    import torch

_HEADS, _LAYERS, _RANK, _VOCABULARY = 2, 2, 4, 512
_WIDTH = 128
"""Of whatever has no heads: inner layers of the text encoders, T5's tokens."""

_VAE_WIDTHS = (32, 64)
"""Channels of the VAE's first level and of all others; its norms may have 32 groups."""

_CONFIG = "config.json"

Builder = Callable[[Path, Mapping[str, Any]], Any]
"""(folder of the original component, twins made before it by folder name) -> its twin, weights not set."""


def make_twin(base: Path, adapter: Path, folder: Path, seed: int) -> None:
    """Write the twin of a pipeline and of its adapter to ``folder``/base and ``folder``/adapter, in bfloat16.

    Of ``base`` and ``adapter`` only the ``config.json`` files are read; tokenizers are not written. The same seed
    gives the same twin. Matrices are scaled so that every layer keeps the size of its input: errors are neither
    hidden nor blown up. Raises ExportError for an unknown class, WeightsError for a configuration that is missing.
    """
    import torch

    name = read_json(base / "transformer" / _CONFIG).get("_class_name")
    builders = _PIPELINES.get(str(name))
    if builders is None:
        raise ExportError(f"no twin can be made of a {name}; allowed: {', '.join(_PIPELINES)}")
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for component, build in builders.items():
        made[component] = build(base / component, made)
        _fill(made[component], generator)
        made[component].to(torch.bfloat16).save_pretrained(folder / "base" / component)
    _write_adapter(made["transformer"], adapter, folder / "adapter", generator)


def _flux(folder: Path, made: Mapping[str, Any]) -> Any:
    from diffusers import FluxTransformer2DModel

    config = _shrunk(folder, num_layers=_LAYERS, num_single_layers=_LAYERS, num_attention_heads=_HEADS)
    config["pooled_projection_dim"] = made["text_encoder"].config.hidden_size
    config["joint_attention_dim"] = made["text_encoder_2"].config.d_model
    return _from_config(FluxTransformer2DModel, config)


def _qwen(folder: Path, made: Mapping[str, Any]) -> Any:
    from diffusers import QwenImageTransformer2DModel

    # One block more: the text half of the last one feeds nothing.
    config = _shrunk(folder, num_layers=_LAYERS + 1, num_attention_heads=_HEADS)
    config["joint_attention_dim"] = made["text_encoder"].config.text_config.hidden_size
    return _from_config(QwenImageTransformer2DModel, config)


def _kl(folder: Path, _: Mapping[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    config = _shrunk(folder, layers_per_block=1)
    widths = config["block_out_channels"]
    config["block_out_channels"] = [min(width, _VAE_WIDTHS[level > 0]) for level, width in enumerate(widths)]
    return _from_config(AutoencoderKL, config)


def _qwen_vae(folder: Path, _: Mapping[str, Any]) -> Any:
    from diffusers import AutoencoderKLQwenImage

    return _from_config(AutoencoderKLQwenImage, _shrunk(folder, base_dim=16, num_res_blocks=1))


def _clip(folder: Path, _: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    read_json(folder / _CONFIG)
    config = CLIPTextConfig.from_pretrained(folder)
    _narrow(config)
    # The end token 2 is no token, but a switch to the way in which old models find the end.
    if config.eos_token_id >= config.vocab_size:
        config.eos_token_id = config.vocab_size - 1
    config.bos_token_id, config.pad_token_id = 0, 1
    config.projection_dim = config.hidden_size
    return CLIPTextModel(config)


def _t5(folder: Path, _: Mapping[str, Any]) -> Any:
    from transformers import T5Config, T5EncoderModel

    read_json(folder / _CONFIG)
    config = T5Config.from_pretrained(folder)
    sizes = {"num_layers": _LAYERS, "num_decoder_layers": _LAYERS, "num_heads": _HEADS, "vocab_size": _VOCABULARY}
    for key, size in {**sizes, "d_model": _WIDTH, "d_ff": 2 * _WIDTH}.items():
        setattr(config, key, min(getattr(config, key), size))
    return T5EncoderModel(config)


def _qwen_text(folder: Path, _: Mapping[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    read_json(folder / _CONFIG)
    config = Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)
    text, vision = config.text_config, config.vision_config
    grouped = text.num_key_value_heads < text.num_attention_heads
    _narrow(text)
    text.num_key_value_heads = 1 if grouped else text.num_attention_heads
    text.layer_types = text.layer_types[: text.num_hidden_layers]
    text.max_window_layers = min(text.max_window_layers, text.num_hidden_layers)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = 0, 1, None
    # The tower of images is part of the files only.
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 1, 32, 2, 32
    vision.out_hidden_size, vision.fullatt_block_indexes = text.hidden_size, [0]
    return Qwen2_5_VLForConditionalGeneration(config)


_PIPELINES: Mapping[str, Mapping[str, Builder]] = {
    "FluxTransformer2DModel": {"text_encoder": _clip, "text_encoder_2": _t5, "vae": _kl, "transformer": _flux},
    "QwenImageTransformer2DModel": {"text_encoder": _qwen_text, "vae": _qwen_vae, "transformer": _qwen},
}
"""By class of the transformer: the folders of the pipeline, text encoders first (they set the transformer's widths)."""


def _shrunk(folder: Path, **sizes: int) -> dict[str, Any]:
    """A diffusers configuration with some numbers made no larger than these."""
    config = read_json(folder / _CONFIG)
    return config | {key: min(int(config.get(key, size)), size) for key, size in sizes.items()}


def _narrow(config: Any) -> None:
    """Shrink a text model of transformers; the width of one head stays, and with it what is made of it."""
    head = config.hidden_size // config.num_attention_heads
    config.num_attention_heads = min(config.num_attention_heads, _HEADS)
    config.hidden_size = head * config.num_attention_heads
    config.intermediate_size = min(config.intermediate_size, _WIDTH)
    config.num_hidden_layers = min(config.num_hidden_layers, _LAYERS)
    config.vocab_size = min(config.vocab_size, _VOCABULARY)


def _from_config(kind: Any, config: Mapping[str, Any]) -> Any:
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    return kind.from_config(plain)


def _fill(module: Any, generator: torch.Generator) -> None:
    """Random parameters: matrices scaled by 1/sqrt(inputs), gains about 1, biases about 0.1."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.numel() > max(parameter.shape, default=1):
                noise /= math.sqrt(parameter[0].numel())
                if name.endswith("SelfAttention.q.weight"):
                    # T5 does not divide its scores by the root of the head's width: its weights do.
                    noise /= math.sqrt(module.config.d_kv)
            elif name.endswith("bias"):
                noise *= 0.1
            else:
                noise = 1 + 0.1 * noise
            parameter.copy_(noise)


def _write_adapter(transformer: Any, original: Path, folder: Path, generator: torch.Generator) -> None:
    """A random adapter for the twin of a backbone, in the released format, with the original's modes and policy."""
    import torch

    from arcflow.adapter import read_config, save_adapter, trained_tensors
    from arcflow.recipe import StudentRecipe
    from arcflow.students import Student, architecture_of_adapter

    known = read_config(original)
    recipe = StudentRecipe(rank=_RANK, modes=known.modes)
    student = Student(transformer, recipe, architecture_of_adapter(known.class_name).NAME)
    with torch.no_grad():
        for name, tensor in trained_tensors(student).items():
            noise = torch.randn(tensor.shape, generator=generator)
            scale = 0.3 if name.endswith("lora_B.weight") else 1.0
            tensor.copy_(0.1 * noise if name.endswith("bias") else noise * (scale / math.sqrt(tensor.shape[1])))
    save_adapter(student, transformer.config, known.policy, folder, torch.bfloat16)
