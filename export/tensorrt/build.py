"""One network from ONNX to a TensorRT plan on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from engines.manifest import ShapeRange
from export.tensorrt.builder_log import BuilderLog
from export.tensorrt.errors import EngineError
from export.tensorrt.flavours import Toolkit
from export.tensorrt.plan_file import PlanWriter, make_stream
from export.tensorrt.profiles import Profile
from export.tensorrt.progress import Flattened, Progress, Report, make_monitor
from export.tensorrt.report import Layers, count_network, inspect_plan
from export.tensorrt.targets import DATA_CENTRE, RTX, Target
from foundation.files import atomic_file

OPT_LEVELS = range(6)
DEFAULT_OPT_LEVEL = 3

_FUSED_HEADS = range(16, 257)
"""Head sizes that 16-bit attention has one kernel for, on every target; found by trying."""

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How hard and within what the builder works.

    opt_level: 0 (fast build) to 5 (fast plan); workspace: bytes of GPU memory that a layer may use for scratch, None
    for all; timing_cache: file that keeps the data-centre flavour's measurements from build to build.
    """

    opt_level: int = DEFAULT_OPT_LEVEL
    workspace: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class PlanReport:
    """A plan that was built: where, its bytes and sha256, by what, for which shapes, in what time, made of what."""

    network: str
    path: Path
    size: int
    sha256: str
    flavour: str
    version: str
    capabilities: tuple[str, ...]
    opt_level: int
    seconds: float
    warnings: int
    layers: Layers
    profile: Profile = field(repr=False)


def build_plan(
    onnx: Path,
    out: Path,
    *,
    target: Target,
    profile: Profile,
    toolkit: Toolkit,
    name: str | None = None,
    options: Options | None = None,
    report: Report = lambda progress: None,
) -> PlanReport:
    """Build ``onnx`` (its external data beside it) into the plan ``out``, which appears whole or not at all.

    profile: least, usual and greatest shape of every input; name: of the network, default the file's; report: called
    with a fraction that only grows, from whichever thread. The same inputs and TensorRT give the same bytes (the
    data-centre flavour: with the same timing cache).
    Raises EngineError (a graph that TensorRT cannot take, shapes that do not fit it, a build that failed), ArcFlowError
    (a folder that cannot be written), KeyboardInterrupt as soon as the builder has stopped.
    """
    name, options = name or onnx.stem, options or Options()
    if options.opt_level not in OPT_LEVELS:
        raise EngineError(f"--opt-level {options.opt_level} is not possible; allowed: 0 to {OPT_LEVELS[-1]}")
    if toolkit.flavour not in target.flavours:
        raise EngineError(f"{toolkit.flavour} does not build for {target.name}; use {' or '.join(target.flavours)}")
    if not onnx.is_file():
        raise EngineError(f"there is no {onnx} to build a plan from")
    started = time.monotonic()
    log = BuilderLog()
    toolkit.logger.sink = log
    try:
        job = _Job(toolkit, log, name, onnx)
        job.configure(target, profile, options)
        with atomic_file(out) as temporary, temporary.open("wb") as stream:
            writer = PlanWriter(stream)
            flattened = Flattened(report)
            _interruptible(lambda: job.build(writer, flattened), flattened.cancelled.set)
        job.save_timing_cache(options.timing_cache)
        layers = inspect_plan(toolkit, out, target.capabilities, job.layers)
    finally:
        toolkit.logger.sink = None
    report(Progress(1.0, "done"))
    return PlanReport(
        network=name,
        path=out,
        size=writer.size,
        sha256=writer.digest,
        flavour=toolkit.flavour,
        version=toolkit.version,
        capabilities=target.capabilities,
        opt_level=options.opt_level,
        seconds=time.monotonic() - started,
        warnings=log.warning_count,
        layers=layers,
        profile=profile,
    )


class _Job:
    """Builder, network and configuration of one build; holds what they refer to."""

    def __init__(self, toolkit: Toolkit, log: BuilderLog, name: str, onnx: Path) -> None:
        """Parse the graph. Raises EngineError."""
        self._toolkit, self._log, self._name = toolkit, log, name
        trt = self._trt = toolkit.trt
        self._builder = trt.Builder(toolkit.logger)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._network.name = name  # Else a count of the process's networks, which would be part of the plan.
        self._parser = trt.OnnxParser(self._network, toolkit.logger)
        if not self._parser.parse_from_file(str(onnx)):
            raise EngineError(f"TensorRT cannot take {onnx}: {self._parser_errors()}; export the network again")
        self._strict_attention = self._allow_plain_attention()
        self.layers = count_network(trt, self._network, self._strict_attention)

    def configure(self, target: Target, profile: Profile, options: Options) -> None:
        """Set profile, targets and limits. Raises EngineError where the profile does not fit the network."""
        trt = self._trt
        config = self._config = self._builder.create_builder_config()
        config.add_optimization_profile(self._profile(profile))
        config.builder_optimization_level = options.opt_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if self._toolkit.flavour == RTX:
            config.num_compute_capabilities = len(target.capabilities)
            for index, capability in enumerate(target.capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), index)
        elif options.timing_cache is not None:
            content = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)

    def build(self, writer: PlanWriter, flattened: Flattened) -> None:
        """Build, and write the plan. Raises EngineError, or what writing or reporting met."""
        self._config.progress_monitor = make_monitor(self._trt, flattened)
        if hasattr(self._builder, "build_serialized_network_to_stream"):
            stream = make_stream(self._trt, writer)
            done = self._builder.build_serialized_network_to_stream(self._network, self._config, stream)
        else:
            plan = self._builder.build_serialized_network(self._network, self._config)
            done = plan is not None and writer.write(plan) > 0
        if flattened.error is not None:
            raise flattened.error
        if writer.error is not None:
            raise writer.error
        if not done or not writer.size:
            raise EngineError(f"TensorRT could not build {self._name}: {self._log.reason}")

    def save_timing_cache(self, path: Path | None) -> None:
        """Keep the measurements for the next build."""
        if path is None or self._toolkit.flavour != DATA_CENTRE:
            return
        with atomic_file(path) as temporary:
            temporary.write_bytes(self._config.get_timing_cache().serialize())

    def _profile(self, profile: Profile) -> Any:
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        names = [tensor.name for tensor in inputs]
        if sorted(names) != sorted(profile):
            raise EngineError(f"{self._name} takes {', '.join(names)}; the profile is for {', '.join(sorted(profile))}")
        made = self._builder.create_optimization_profile()
        for tensor in inputs:
            shapes = profile[tensor.name]
            if not _fits(shapes, tuple(tensor.shape)):
                raise EngineError(
                    f"{self._name}: the profile of {tensor.name} is {list(shapes.min)} to {list(shapes.max)}, "
                    f"the network takes {[d if d >= 0 else 'any' for d in tensor.shape]}"
                )
            made.set_shape(tensor.name, tuple(shapes.min), tuple(shapes.opt), tuple(shapes.max))
        return made

    def _allow_plain_attention(self) -> int:
        """Let attention that no single kernel can do be done in parts; returns how many must be one kernel."""
        trt, strict = self._trt, 0
        for index in range(self._network.num_layers):
            layer = self._network.get_layer(index)
            if layer.type.name != "ATTENTION_INPUT":
                continue
            query = layer.get_input(0)
            if query.dtype != trt.DataType.FLOAT and query.shape[-1] in _FUSED_HEADS:
                strict += 1
                continue
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
        return strict

    def _parser_errors(self) -> str:
        errors = [self._parser.get_error(index) for index in range(self._parser.num_errors)]
        if not errors:
            return self._log.reason
        first = errors[0]
        where = f"{first.node_operator()} at {first.node_name()}" if first.node_operator() else "the file"
        what = " ".join(first.desc().split())
        rest = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return f"{where} ({first.code().name}: {what}){rest}"


def _fits(shapes: ShapeRange, dims: tuple[int, ...]) -> bool:
    if not len(shapes.min) == len(shapes.opt) == len(shapes.max) == len(dims):
        return False
    rows = zip(shapes.min, shapes.opt, shapes.max, dims, strict=True)
    return all(low <= usual <= high and (size < 0 or low == high == size) for low, usual, high, size in rows)


def _interruptible(work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """The result of ``work``, run in a thread of its own so that this one hears Ctrl-C.

    Ctrl-C calls ``cancel`` once, waits until ``work`` has ended (the builder cannot be left behind), and goes on up.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that waits
            outcome.set_exception(error)

    thread = Thread(target=run, name="plan builder", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        cancel()
        while thread.is_alive():
            with suppress(KeyboardInterrupt):
                thread.join(0.1)
        raise
    return outcome.result()
