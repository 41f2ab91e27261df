"""What a backbone is told of prompts, made by the very networks that are exported, streamed where they are large."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.networks.streaming import choose_placement, open_module

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from arcflow.conditioning import ConditioningDtype
    from export.networks.base import Network
    from export.sources.tokenizers import TokenizerFile
    from export.students.rollout import Evaluate

Report = Callable[[str, int, int], None]
"""Told (what is being done, done, in all)."""

BATCH = 8
"""Prompts that a text encoder takes at a time."""


@dataclass(frozen=True)
class Prompted:
    """The encodings of prompts, by backbone port, each [prompts, ...] in the CPU's memory.

    architecture: "flux" or "qwen"; guidance: fed where the backbone has such a port; trained: what the student was
    trained in, whose rounding of noise level and guidance it expects; rows, columns: of image tokens.
    """

    architecture: str
    encodings: Mapping[str, Tensor]
    guidance: float
    trained: ConditioningDtype
    rows: int
    columns: int

    def __len__(self) -> int:
        return len(next(iter(self.encodings.values())))

    def ports(self, rows: slice) -> dict[str, Tensor]:
        """All input ports of those prompts but hidden_states and timestep; floating ports are float32."""
        import torch

        chosen = {name: tensor[rows] for name, tensor in self.encodings.items()}
        chosen = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in chosen.items()}
        batch, tokens = chosen["encoder_hidden_states"].shape[:2]
        if self.architecture == "qwen":
            from arcflow.qwen import image_positions, text_positions

            longest = max(int(chosen["encoder_hidden_states_mask"].sum(dim=1).max()), 1)
            cut = {name: tensor[:, :longest] for name, tensor in chosen.items()}
            img_ids = image_positions(self.rows, self.columns)
            return {**cut, "img_ids": img_ids, "txt_ids": text_positions(self.rows, self.columns, longest)}
        from arcflow.flux import as_trained, image_ids

        guidance = as_trained(torch.full((batch,), self.guidance), self.trained)
        img_ids = image_ids(self.rows, self.columns)
        return {**chosen, "guidance": guidance, "img_ids": img_ids, "txt_ids": torch.zeros(tokens, 3)}

    def calling(self, evaluate: Evaluate) -> Evaluate:
        """That backbone, called with exact noise levels and fed those which the student saw in training."""
        from arcflow.students import architecture

        as_trained = architecture(self.architecture).as_trained

        def fed(*, timestep: Tensor, **others: Tensor) -> Sequence[Tensor]:
            return evaluate(timestep=as_trained(timestep, self.trained), **others)

        return fed


def encode_prompts(
    architecture: ModuleType,
    network: Callable[[str], Network],
    tokenizers: Mapping[str, TokenizerFile],
    prompts: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    report: Report | None = None,
) -> dict[str, Tensor]:
    """Run the architecture's text encoders over ``prompts``: encodings by backbone port, in ``dtype``.

    architecture: such as :mod:`export.architectures.flux`; network: makes one of its networks by name; tokenizers: as
    the bundle would carry them. Raises ExportError, WeightsError.
    """
    ids = {name: token_ids(file, prompts) for name, file in tokenizers.items()}
    results: dict[str, Tensor] = {}
    for name, (tokens, mask) in ids.items():
        inputs = {"input_ids": tokens, "attention_mask": mask} if architecture.NAME == "qwen" else {"input_ids": tokens}
        results[name] = _run(network(name), inputs, dtype, device, report)
    match architecture.NAME:
        case "flux":
            return {"pooled_projections": results["clip"], "encoder_hidden_states": results["t5"]}
        case "qwen":
            drop = tokenizers["text"].spec.drop
            mask = ids["text"][1][:, drop:]
            sequence = results["text"][:, drop:] * mask[..., None].to(dtype)
            return {"encoder_hidden_states": sequence, "encoder_hidden_states_mask": mask}
        case other:
            raise ExportError(f"prompts cannot be encoded for the architecture {other!r}")


def token_ids(file: TokenizerFile, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(ids, mask), each int64 [prompts, tokens], padded on the right and cut as the tokenizer's spec says."""
    import torch
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_buffer(file.source)
    tokenizer.enable_truncation(file.spec.max_tokens)
    length = file.spec.max_tokens if file.spec.pad == "max" else None
    tokenizer.enable_padding(pad_id=file.spec.pad_id, length=length)
    template = file.spec.template or "{}"
    encoded = tokenizer.encode_batch([template.replace("{}", prompt) for prompt in prompts])
    ids = torch.tensor([one.ids for one in encoded], dtype=torch.int64)
    return ids, torch.tensor([one.attention_mask for one in encoded], dtype=torch.int64)


def _run(
    network: Network, inputs: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device, report: Report | None
) -> Tensor:
    """One text encoder over all prompts, some at a time; its only output, in ``dtype`` on the CPU."""
    import torch

    module = open_module(network, dtype, device, choose_placement(network, dtype, device))
    parts = []
    total = len(inputs["input_ids"])
    for start in range(0, total, BATCH):
        batch = {name: tensor[start : start + BATCH].to(device) for name, tensor in inputs.items()}
        with torch.no_grad():
            (output,) = module(**batch)
        parts.append(output.to("cpu", dtype))
        if report is not None:
            report(network.name, min(start + BATCH, total), total)
    return torch.cat(parts)
