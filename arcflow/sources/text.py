"""A pipeline's text encoders: opened when first needed, where they run, and let go of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arcflow.errors import BackboneError
from arcflow.sources.base import Base
from arcflow.sources.pipeline import quiet

Placement = Literal["device", "turns", "cpu"]
"""Where text encoders run: on the backbone's device beside it, there in turns with it, or on the CPU."""

Encoding = dict[str, Tensor]
"""What they say of one prompt, in the CPU's memory; the tensors are the architecture's (its ``encoding``)."""


@dataclass
class TextEncoders:
    """The text encoders of a base.

    tokens: the longest prompt; device: the backbone's.
    """

    base: Base
    tokens: int
    dtype: torch.dtype
    device: torch.device
    placement: Placement = "device"
    _pipeline: Any = field(default=None, init=False, repr=False)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Iterator[Encoding]:
        """Encode prompts, one at a time: an encoding depends on its prompt alone, not on its batch.

        Raises BackboneError where the base lacks a text encoder or tokenizer, or one cannot be read.
        """
        pipeline = self._opened()
        for prompt in prompts:
            with quiet():
                found = self.base.architecture.encoding(pipeline, prompt, self.tokens)
            yield {name: tensor.to("cpu", self.dtype).contiguous() for name, tensor in found.items()}

    @contextmanager
    def turn(self, backbone: nn.Module) -> Iterator[None]:
        """With placement "turns": the device is the text encoders', and ``backbone`` waits in the CPU's memory."""
        if self.placement != "turns":
            yield
            return
        pipeline = self._opened()
        frozen = [p for p in backbone.parameters() if not p.requires_grad]
        _move(frozen, torch.device("cpu"))
        try:
            pipeline.to(self.device)
            yield
        finally:
            pipeline.to("cpu")
            _move(frozen, self.device)

    def close(self) -> None:
        """Let go of their memory; they are opened again when needed."""
        self._pipeline = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _opened(self) -> Any:
        if self._pipeline is None:
            pipeline = _open(self.base, self.dtype)
            self._pipeline = pipeline.to(self.device) if self.placement == "device" else pipeline
        return self._pipeline


def _open(base: Base, dtype: torch.dtype) -> Any:
    import diffusers
    from safetensors import SafetensorError

    missing = [name for name in base.architecture.TEXT_PARTS if not (base.folder / name).is_dir()]
    if missing:
        raise BackboneError(f"{base.folder} lacks {', '.join(missing)}: prompts cannot be encoded; give a whole --base")
    try:
        with quiet():  # Around the class as well: its file is imported now, and transformers has remarks on that.
            pipeline = getattr(diffusers, base.architecture.PIPELINE_CLASS).from_pretrained(
                base.folder, transformer=None, vae=None, dtype=dtype, local_files_only=True, use_safetensors=True
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BackboneError(
            f"cannot read the text encoders of {base.folder}: {error}; download the base again"
        ) from error
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    return pipeline


def _move(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Move what is frozen; whatever holds the parameters keeps them."""
    for parameter in parameters:
        parameter.data = parameter.data.to(device)
    if device.type == "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()
