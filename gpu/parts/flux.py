"""(e) The FLUX student at full size with random bfloat16 weights in torch: what engines must beat.

Two evaluations at 1024x1024 with the closed form between them, on the network of gpu/backbone.py: eager, compiled in
several ways, and with FP8 linears.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from foundation.quantiles import percentile
from gpu.catalogue import Options
from gpu.device import need_gpu
from gpu.records import Emit, Printer, SkipPartError, guarded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gpu.backbone import BackboneSize

SIDE, TEXT_TOKENS = 64, 512
SHIFT = 3.2


@dataclass(frozen=True)
class Mode:
    """How the network is run.

    compiled: nothing, each "block", or the "whole" of it; attention: an SDPBackend, None for torch's choice;
    published: milliseconds an evaluation on an H100 that others report for the teacher run so.
    """

    compiled: str | None = None
    attention: str | None = None
    fp8: bool = False
    autotune: bool = False
    published: float | None = None


MODES: Mapping[str, Mode] = {
    "eager": Mode(published=235.0),
    "blocks": Mode("block"),
    "cudnn": Mode("block", attention="CUDNN_ATTENTION"),
    "whole": Mode("whole", published=150.0),
    "autotune": Mode("block", attention="CUDNN_ATTENTION", autotune=True),
    "diffusers": Mode(published=235.0),
    "fp8": Mode("block", attention="CUDNN_ATTENTION", fp8=True, published=106.0),
}
USUAL = ("eager", "diffusers", "blocks", "cudnn", "fp8", "whole")
"""In this order: "whole" compiles longest."""


def run(printer: Printer, options: Options) -> None:
    """Build once, then measure the modes one after the other."""

    from gpu.backbone import BackboneSize

    need_gpu()
    modes = options.modes or USUAL
    if unknown := [name for name in modes if name not in MODES]:
        raise SkipPartError(f"unknown modes {', '.join(unknown)}; allowed: {', '.join(MODES)}")
    size = replace(BackboneSize(), num_layers=1, num_single_layers=2) if options.smoke else BackboneSize()
    rounds = 3 if options.smoke else 25
    baseline = Baseline(size, "cuda", SIDE, TEXT_TOKENS)
    printer(
        "FLUX student",
        f"{baseline.parameters / 1e9:.2f} B parameters, {baseline.operations / 1e12:.1f} TFLOP an evaluation",
        parameters=baseline.parameters,
        operations=baseline.operations,
        weight_bytes=baseline.parameters * 2,
    )
    for name in modes:
        guarded(printer, f"FLUX, {name}", partial(baseline.measure, printer, name, rounds))


class Baseline:
    """A student with random weights, and its inputs."""

    def __init__(self, size: BackboneSize, where: str, side: int, text_tokens: int) -> None:
        import torch

        from gpu.backbone import Backbone, inputs

        self.size, self.where = size, where
        torch.manual_seed(0)
        with torch.device("meta"):
            model = Backbone(size).to(torch.bfloat16)
        self.operations = count_operations(size, side, text_tokens)
        self.model: nn.Module = randomise(model.to_empty(device=where))
        self.parameters = sum(p.numel() for p in model.parameters())
        self.given = inputs(size, side, text_tokens, where, torch.bfloat16)
        self.noise = torch.randn(1, side * side, size.in_channels, device=where)
        self.reference: Tensor | None = None

    def measure(self, emit: Emit, name: str, rounds: int) -> None:
        """Time one mode: every evaluation and solver step between events."""
        import torch
        import torch._dynamo as dynamo

        from gpu.fp8 import to_fp8

        mode = MODES[name]
        model = self._diffusers() if name == "diffusers" else self._twin() if mode.fp8 else self.model
        fp8 = to_fp8(model) if mode.fp8 else 0
        _forget_memory()
        start = time.perf_counter()
        with compiled(model, mode) as network, attention(mode.attention), torch.no_grad():
            advance = _closed_form(mode)
            x = self._picture(network, advance, lambda: None)
            _wait()
            first = time.perf_counter() - start
            for _ in range(2):
                self._picture(network, advance, lambda: None)
            stages = [self._timed(network, advance) for _ in range(rounds)]
        evaluations = [value for each in stages for value in each[0::2]]
        totals = [sum(each) for each in stages]
        middle = statistics.median(evaluations)
        drift = 0.0 if self.reference is None else float((x - self.reference).norm() / self.reference.norm())
        if self.reference is None:
            self.reference = x
        finite = bool(torch.isfinite(x).all())
        memory = torch.cuda.max_memory_allocated() - self._unused(model) if torch.cuda.is_available() else 0
        emit(
            f"FLUX, {name}",
            f"{middle * 1e3:.1f} ms an evaluation, {statistics.median(totals) * 1e3:.1f} ms for both with the solver, "
            f"{self.operations / middle / 1e12:.0f} TFLOP/s, peak {memory / 2**30:.1f} GiB"
            + ("" if mode.published is None else f" (others report {mode.published:.0f} ms)"),
            evaluation_ms=middle * 1e3,
            evaluation_p99_ms=percentile(evaluations, 0.99) * 1e3,
            both_ms=statistics.median(totals) * 1e3,
            both_p99_ms=percentile(totals, 0.99) * 1e3,
            solver_ms=statistics.median(value for each in stages for value in each[1::2]) * 1e3,
            rate=self.operations / middle,
            peak_bytes=memory,
            first_s=first,
            rounds=rounds,
            fp8_linears=fp8,
            compiled_graphs=int(dynamo.utils.counters["stats"]["unique_graphs"]),
            difference_from_first_mode=drift,
            finite=finite,
            mode=mode.__dict__,
        )
        if not finite:
            raise ValueError(f"mode {name} gave values that are not finite")

    def _picture(self, network: Callable[..., Any], advance: Callable[..., Tensor], mark: Callable[[], None]) -> Tensor:
        import torch

        from arcflow.schedule import sigmas

        x = self.noise
        levels = [torch.tensor(level, device=self.where) for level in sigmas(2, SHIFT)]
        mark()
        for a, b in itertools.pairwise(levels):
            given = {"hidden_states": x.to(torch.bfloat16), "timestep": a[None].to(torch.bfloat16), **self.given}
            field = network(**given, return_dict=False)[0]
            mark()
            x = advance(field.means, field.logweights, field.loggammas, x, a, a, b)
            mark()
        return x

    def _timed(self, network: Callable[..., Any], advance: Callable[..., Tensor]) -> list[float]:
        """Seconds of evaluation 1, solver 1, evaluation 2, solver 2."""
        import torch

        if not torch.cuda.is_available():
            clock: list[float] = []
            self._picture(network, advance, lambda: clock.append(time.perf_counter()))
            return [b - a for a, b in itertools.pairwise(clock)]
        events: list[Any] = []

        def mark() -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append(event)

        self._picture(network, advance, mark)
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]

    def _unused(self, model: nn.Module) -> int:
        """Bytes of the first network's weights that ``model`` does not use: they lie there for the other modes only."""
        used = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p.data_ptr() not in used)

    def _twin(self) -> nn.Module:
        """Another network over the same weights, whose layers may be replaced."""
        import torch

        from gpu.backbone import Backbone

        with torch.device("meta"):
            model = Backbone(self.size)
        model.load_state_dict(self.model.state_dict(), strict=True, assign=True)
        return model.eval()

    def _diffusers(self) -> nn.Module:
        """The same weights in diffusers' own network, shared, where it is installed."""
        import torch

        lacking = [name for name in ("diffusers", "peft", "msgspec") if find_spec(name) is None]
        if lacking:
            raise SkipPartError(f"needs {', '.join(lacking)}, not installed here")
        from arcflow.students import build_student

        config = {key: value for key, value in self.size.__dict__.items() if key != "modes"}
        with torch.device("meta"):
            model = build_student({**config, "patch_size": 1, "guidance_embeds": True}, self.size.modes)
        model.load_state_dict(self.model.state_dict(), strict=True, assign=True)
        return model.eval()


def randomise(model: nn.Module) -> nn.Module:
    """Random weights in place, of a size that keeps activations finite; norms' own weights about 1."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if ".norm_" in name and parameter.ndim == 1 else 0.0, 0.02)
    return model.eval().requires_grad_(False)


def count_operations(size: BackboneSize, side: int, text_tokens: int) -> int:
    """Floating-point operations of an evaluation, counted by torch over the network without weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gpu.backbone import Backbone, inputs

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        given = {
            name: value.to("meta") for name, value in inputs(size, side, text_tokens, "meta", torch.float32).items()
        }
        Backbone(size)(torch.empty(1, side * side, size.in_channels), timestep=torch.empty(1), **given)
    return int(counter.get_total_flops())


@contextmanager
def compiled(model: nn.Module, mode: Mode) -> Iterator[Callable[..., Any]]:
    """The network as the mode calls it; its blocks are as they were afterwards."""
    import torch
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()
    options: dict[str, Any] = {"mode": "max-autotune-no-cudagraphs"} if mode.autotune else {}
    if mode.compiled == "whole":
        yield torch.compile(model, **options)
        return
    blocks = [block for name in ("transformer_blocks", "single_transformer_blocks") for block in getattr(model, name)]
    if mode.compiled == "block":
        for block in blocks:
            block.compile(**options)
    try:
        yield model
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@contextmanager
def attention(backend: str | None) -> Iterator[None]:
    """Only that implementation of attention; None: whichever torch chooses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if backend is None:
        yield
        return
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        yield


def _closed_form(mode: Mode) -> Callable[..., Tensor]:
    import torch

    from gpu.solver_speed import closed_form

    return torch.compile(closed_form, dynamic=False) if mode.compiled else closed_form


def _forget_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
