"""Attention of the baseline: torch's choice, cuDNN's through torch, or cuDNN's in FP8 through its own front end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu.records import SkipPartError

GREATEST = 448.0
"""The largest E4M3 value."""

_NAME = "arcflow_gpu::attention_fp8"


def chosen(kind: str) -> AbstractContextManager[object]:
    """In the block torch's attention is cuDNN's alone for "cudnn"; otherwise torch chooses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION]) if kind == "cudnn" else nullcontext()


def need_fp8(where: str) -> None:
    """Raise SkipPartError where cuDNN's front end is not installed. A CPU computes what it would compute."""
    if where != "cpu" and find_spec("cudnn") is None:
        raise SkipPartError("not available: FP8 attention needs the package nvidia-cudnn-frontend")


class Fp8Attend(nn.Module):
    """Attention with q, k, v, probabilities and result in E4M3. [B, S, heads, head_dim] each -> [B, S, width]."""

    scales: Tensor

    def __init__(self, scales: Sequence[float], device: torch.device) -> None:
        """scales: of q, k, v and of the result."""
        super().__init__()
        register()
        q, k, v, out = scales
        # As cuDNN wants them: what undoes the scale of q, k, v and of probabilities, what makes that of p and result.
        self.register_buffer("scales", torch.tensor([q, k, v, 1 / GREATEST, GREATEST, 1 / out], device=device))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = ((part.float() / scale).clamp(-GREATEST, GREATEST) for part, scale in zip((q, k, v), self.scales))  # noqa: B905
        small = (part.to(torch.float8_e4m3fn).contiguous() for part in parts)
        out: Tensor = torch.ops.arcflow_gpu.attention_fp8(*small, self.scales)
        return (out.float() / self.scales[5]).to(q.dtype).flatten(2, 3)


@cache
def register() -> None:
    """Make the operator known, so that blocks are compiled with it: on a GPU cuDNN's, on a CPU the same in float32."""

    @torch.library.custom_op(_NAME, mutates_args=())
    def attention(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        if q.device.type == "cpu":
            return _in_float32(q, k, v, scales)
        return _prepared(tuple(q.shape))(q, k, v, scales)

    @attention.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        return torch.empty_like(q)


def _in_float32(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
    """What FP8 leaves of inputs and result; probabilities are not rounded."""
    q, k, v = (part.float().transpose(1, 2) * scale for part, scale in zip((q, k, v), scales[:3], strict=True))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2) * scales[5]
    return out.clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn).contiguous()


@cache
def _prepared(shape: tuple[int, int, int, int]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """cuDNN's plan for [B, S, heads, head_dim], built once."""
    import cudnn

    batch, tokens, heads, features = shape
    dims, strides = (batch, heads, tokens, features), (tokens * heads * features, features, heads * features, 1)
    kinds, handle, one = cudnn.data_type, _handle(), (1, 1, 1, 1)
    graph = cudnn.pygraph(
        io_data_type=kinds.FP8_E4M3,
        intermediate_data_type=kinds.FLOAT,
        compute_data_type=kinds.FLOAT,
        handle=handle,
    )
    given = [graph.tensor(name=name, dim=dims, stride=strides, data_type=kinds.FP8_E4M3) for name in ("q", "k", "v")]
    names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    factors = {name: graph.tensor(name=name, dim=one, stride=one, data_type=kinds.FLOAT) for name in names}
    q, k, v = given
    out, _, amax_s, amax_o = graph.sdpa_fp8(
        q=q, k=k, v=v, **factors, attn_scale=features**-0.5, generate_stats=False, name="attention"
    )
    out.set_output(True).set_dim(dims).set_stride(strides).set_data_type(kinds.FP8_E4M3)
    for amax in (amax_s, amax_o):  # It has to be written somewhere.
        amax.set_output(True).set_dim(one).set_stride(one).set_data_type(kinds.FLOAT)
    graph.build([cudnn.heur_mode.A])
    size = max(int(graph.get_workspace_size()), 1)

    def attend(query: Tensor, key: Tensor, value: Tensor, scales: Tensor) -> Tensor:
        result = torch.empty_like(query)
        seen, workspace = (torch.empty(n, dtype=torch.uint8, device=query.device) for n in (256, size))
        addresses: dict[Any, int] = dict(zip(given, (part.data_ptr() for part in (query, key, value)), strict=True))
        addresses |= {factors[name]: scales.data_ptr() + 4 * place for place, name in enumerate(names)}
        addresses |= {out: result.data_ptr(), amax_s: seen.data_ptr(), amax_o: seen.data_ptr() + 128}
        cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
        graph.execute(addresses, workspace.data_ptr(), handle=handle)
        return result

    return attend


@cache
def _handle() -> int:
    import cudnn

    return int(cudnn.create_handle())
