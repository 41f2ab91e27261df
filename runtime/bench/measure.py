"""Measuring a pipeline: stages of many runs, what the process holds, and what the CPU can do at best."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.schema import Network as NetworkSpec
from engines.schema import Port
from foundation.quantiles import percentile
from runtime.bench.roofline import Peak
from runtime.errors import BackendError
from runtime.hosts.onnx_network import OnnxRuntimeNetwork

if TYPE_CHECKING:
    from runtime.result import Generation
    from runtime.timing import Span

Passage = tuple[str, float, float]
"""A stage, its start and its end in seconds."""

_EVALUATION = "evaluation"
_NUMBERED = {"backbone": _EVALUATION, "solver": "solver"}
_HOST = "host overhead"
_IDLE = "idle, evaluations"
_MATRIX = 2048
_COPY_BYTES = 256 << 20
_PRODUCT = NetworkSpec(
    file="product.onnx",
    inputs=[Port("a", "float32", [_MATRIX, _MATRIX]), Port("b", "float32", [_MATRIX, _MATRIX])],
    outputs=[Port("c", "float32", [_MATRIX, _MATRIX])],
)


@dataclass(frozen=True)
class Stage:
    """Seconds of one stage over all runs."""

    name: str
    median: float
    p99: float


@dataclass(frozen=True)
class Measurement:
    """Runs of one pipeline. total: of a whole run. stages: in order, host overhead (what is in none of them) last.

    idle: from the end of an evaluation to the start of the next, what no stage covers; None with one evaluation.
    timeline: the spans of the run whose total is the median, (stage, start, end) in seconds.
    """

    total: Stage
    stages: tuple[Stage, ...]
    idle: Stage | None
    timeline: tuple[Passage, ...]
    runs: int


def measure(
    generate: Callable[[int], Generation], runs: int, warm_up: int, warm: Callable[[], None] = lambda: None
) -> Measurement:
    """Time ``generate(seed)`` over ``runs`` seeds, after ``warm_up`` that do not count. Needs runs >= 1.

    warm: called between the two.
    """
    walls: list[float] = []
    passages: list[tuple[Passage, ...]] = []
    for attempt in range(warm_up + runs):
        if attempt == warm_up:
            warm()
        start = time.perf_counter()
        made = generate(attempt)
        wall = time.perf_counter() - start
        if attempt >= warm_up:
            walls.append(wall)
            passages.append(name_spans(made.spans))
    seconds: dict[str, list[float]] = {}
    for wall, spans in zip(walls, passages, strict=True):
        for stage in dict.fromkeys(name for name, _, _ in spans):  # Text encoders and conditioner are one, each a span.
            seconds.setdefault(stage, []).append(sum(end - begin for name, begin, end in spans if name == stage))
        seconds.setdefault(_HOST, []).append(wall - covered(spans))
    host = seconds.pop(_HOST)
    idle = [gap for spans in passages for gap in gaps(spans)]
    middle = sorted(range(len(walls)), key=walls.__getitem__)[len(walls) // 2]
    return Measurement(
        total=_stage("total", walls),
        stages=tuple(_stage(name, values) for name, values in [*seconds.items(), (_HOST, host)]),
        idle=_stage(_IDLE, idle) if idle else None,
        timeline=passages[middle],
        runs=len(walls),
    )


def covered(spans: Sequence[Passage], start: float = -math.inf, end: float = math.inf) -> float:
    """Seconds from ``start`` to ``end`` that are in a span; where several are at once, they count once."""
    seconds, reached = 0.0, start
    for _, begin, finish in sorted(spans, key=lambda span: span[1]):
        begin, finish = max(begin, reached), min(finish, end)
        if finish > begin:
            seconds, reached = seconds + finish - begin, finish
    return seconds


def gaps(spans: Sequence[Passage]) -> list[float]:
    """Between each evaluation and the next, the seconds that are in no span: nothing was known to run."""
    evaluations = [span for span in spans if span[0].startswith(f"{_EVALUATION} ")]
    return [
        max(following - end, 0.0) - covered(spans, end, following)
        for (_, _, end), (_, following, _) in itertools.pairwise(evaluations)
    ]


def name_spans(spans: Sequence[Span]) -> tuple[Passage, ...]:
    """Spans as (name, start, end), evaluations and solver steps numbered from 1 in the order they ran."""
    seen: dict[str, int] = {}
    named = []
    for span in spans:
        name = _NUMBERED.get(span.stage, span.stage)
        if span.stage in _NUMBERED:
            seen[name] = seen.get(name, 0) + 1
            name = f"{name} {seen[name]}"
        named.append((name, span.start, span.end))
    return tuple(named)


def cpu_peak(types: Sequence[str], threads: int) -> Peak:
    """What this CPU reaches at best, measured now: a float32 matrix product, and a copy that no cache holds.

    types: those that the networks are stored in; a CPU computes all of them in float32. threads: of the product, which
    runs where the networks run, in ONNX Runtime. Raises BackendError where the package onnx is not installed.
    """
    a, b = (np.random.default_rng(seed).random((_MATRIX, _MATRIX), dtype=np.float32) for seed in (0, 1))
    network = OnnxRuntimeNetwork("product", _product_model(), _PRODUCT, threads)
    product = _best(lambda: network.run({"a": a, "b": b}))
    source, target = np.ones(_COPY_BYTES // 4, np.float32), np.zeros(_COPY_BYTES // 4, np.float32)
    copy = _best(lambda: np.copyto(target, source))
    speed = 2.0 * _MATRIX**3 / product
    return Peak(
        operations=dict.fromkeys(types, speed),
        bandwidth=2.0 * _COPY_BYTES / copy,
        source=f"measured: {speed / 1e9:.0f} GFLOP/s in a product of {_MATRIX} x {_MATRIX} on {threads} threads, "
        f"{2.0 * _COPY_BYTES / copy / 1e9:.1f} GB/s in a copy of {_COPY_BYTES >> 20} MiB",
    )


def _product_model() -> bytes:
    """c = a b, as an ONNX model."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise BackendError("measuring the peak needs the package onnx: pip install 'arcflow[export]'") from error
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_MATRIX, _MATRIX]) for name in "abc")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return model


def peak_memory() -> Mapping[str, int]:
    """Bytes that this process has held at most, by kind ("host")."""
    try:
        import resource
    except ImportError:  # Not a Unix.
        return {}
    return {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _best(work: Callable[[], object], times: int = 5) -> float:
    """The least seconds of several runs: what the machine can do, not what it does on average."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def _stage(name: str, values: Sequence[float]) -> Stage:
    return Stage(name, statistics.median(values), percentile(values, 0.99))
