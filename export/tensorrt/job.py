"""One build, as the worker does it: parse, configure, build, count. Everything here touches TensorRT itself."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.schema import PlanMemory, ShapeRange
from engines.tensorrt import TensorRTLog
from export.errors import EngineError
from export.precision import FUSED_HEADS
from export.tensorrt.flavours import Toolkit
from export.tensorrt.plan_file import PlanWriter, make_stream
from export.tensorrt.profiles import Profile
from export.tensorrt.progress import Report, Split, Whole, make_monitor
from export.tensorrt.report import Layers, count_network, inspect_plan
from export.tensorrt.targets import DATA_CENTRE, RTX
from foundation.files import atomic_file

OPT_LEVELS = range(6)
DEFAULT_OPT_LEVEL = 3

_OWN_FAULT = re.compile(r"Exception|CHECK\(|Could not find any implementation|Internal Error")
"""What the builder says where it fails by itself."""

_SPLITS = {RTX: Split(phases=0.1, writing=0.6), DATA_CENTRE: Split(phases=0.9, writing=0.9)}


@dataclass(frozen=True)
class Options:
    """How hard and within what the builder works.

    opt_level: 0 (fast build) to 5 (fast plan); workspace: bytes of GPU memory that a layer may use for scratch, None
    for all; timing_cache: file that keeps the data-centre flavour's measurements from build to build. Raises
    EngineError for another level.
    """

    opt_level: int = DEFAULT_OPT_LEVEL
    workspace: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.opt_level not in OPT_LEVELS:
            raise EngineError(f"--opt-level {self.opt_level} is not possible; allowed: 0 to {OPT_LEVELS[-1]}")


@dataclass(frozen=True)
class Job:
    """What the worker is asked: build ``onnx`` into ``plan``, a file that it may overwrite."""

    onnx: Path
    plan: Path
    name: str
    flavour: str
    capabilities: tuple[str, ...]
    profile: Profile
    options: Options


@dataclass(frozen=True)
class Built:
    """What it answers."""

    size: int
    sha256: str
    warnings: int
    layers: Layers
    memory: PlanMemory | None


def do(job: Job, toolkit: Toolkit, report: Report) -> Built:
    """Build. Raises EngineError, or the OSError that writing met."""
    log = TensorRTLog()
    toolkit.logger.sink = log
    work = _Work(job, toolkit, log)
    work.configure()
    with job.plan.open("wb") as stream:
        whole = Whole(report, _SPLITS[job.flavour], work.layers.constant_bytes)
        writer = PlanWriter(stream, whole.written)
        work.build(writer, whole.phase)
    work.save_timing_cache()
    layers = inspect_plan(toolkit, job.plan, job.capabilities, work.layers)
    return Built(writer.size, writer.digest, log.warning_count, layers, memory_of(log))


def memory_of(log: TensorRTLog) -> PlanMemory | None:
    """What the plan takes of a GPU; None where this TensorRT does not say it, or in other words."""
    try:
        return PlanMemory(weights=log.memory["Weights"], activations=log.memory["Activation"])
    except KeyError:
        return None


class _Work:
    """Builder, network and configuration of one build; holds what they refer to."""

    def __init__(self, job: Job, toolkit: Toolkit, log: TensorRTLog) -> None:
        """Parse the graph. Raises EngineError."""
        self._job, self._toolkit, self._log = job, toolkit, log
        trt = self._trt = toolkit.trt
        self._builder = trt.Builder(toolkit.logger)
        self._builder.max_threads = 1  # More race for memory where the machine is busy; plans follow addresses.
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._network.name = job.name  # Else a count of the process's networks, which would be part of the plan.
        self._parser = trt.OnnxParser(self._network, toolkit.logger)
        refused = f"TensorRT cannot take {job.onnx}"
        with contextlib.chdir(job.onnx.parent):  # TensorRT keeps the path, and its length moves what follows in memory.
            parsed = self._parser.parse_from_file(job.onnx.name)
        if not parsed:
            raise EngineError(f"{refused}: {self._parser_errors()}; export the network again")
        if not self._network.num_inputs or not self._network.num_outputs:
            raise EngineError(f"{refused}: it has no inputs or no outputs; export the network again")
        self.layers = count_network(self._network, self._allow_plain_attention())

    def configure(self) -> None:
        """Set profile, targets and limits. Raises EngineError where the profile does not fit the network."""
        trt, options = self._trt, self._job.options
        config = self._config = self._builder.create_builder_config()
        config.add_optimization_profile(self._profile(self._job.profile))
        config.builder_optimization_level = options.opt_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # All scratch memory is the runtime's one arena, and evaluations can be part of a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if self._toolkit.flavour == RTX:
            config.num_compute_capabilities = len(self._job.capabilities)
            for index, capability in enumerate(self._job.capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), index)
        elif options.timing_cache is not None:
            content = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
            config.set_timing_cache(config.create_timing_cache(content), ignore_mismatch=False)

    def build(self, writer: PlanWriter, report: Report) -> None:
        """Build, and write the plan. Raises EngineError, or the OSError that writing met."""
        self._config.progress_monitor = make_monitor(self._trt, report)
        if hasattr(self._builder, "build_serialized_network_to_stream"):
            stream = make_stream(self._trt, writer)
            done = self._builder.build_serialized_network_to_stream(self._network, self._config, stream)
        else:
            plan = self._builder.build_serialized_network(self._network, self._config)
            done = plan is not None and writer.write(plan) > 0
        if writer.error is not None:
            raise writer.error
        if not done or not writer.size:
            raise EngineError(f"TensorRT could not build {self._job.name}: {self._log.reason}{self._way_out()}")

    def _way_out(self) -> str:
        """What to try where the builder failed by a fault of its own, not of what it was asked for."""
        if not _OWN_FAULT.search(self._log.reason):
            return ""
        product = f"{self._toolkit.flavour} {self._toolkit.version}"
        if all(shapes.min == shapes.max for shapes in self._job.profile.values()):
            return f"; {product} fails there by itself: try another --opt-level, or another version of it"
        return (
            f"; {product} fails there by itself, most often where shapes may vary: try --batch 1, then one size in "
            "--resolutions and one number of --text-tokens, or another version of it"
        )

    def save_timing_cache(self) -> None:
        """Keep the measurements for the next build."""
        path = self._job.options.timing_cache
        if path is None or self._toolkit.flavour != DATA_CENTRE:
            return
        with atomic_file(path) as temporary:
            temporary.write_bytes(self._config.get_timing_cache().serialize())

    def _profile(self, profile: Profile) -> Any:
        name = self._job.name
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        names = [tensor.name for tensor in inputs]
        if sorted(names) != sorted(profile):
            raise EngineError(f"{name} takes {', '.join(names)}; the profile is for {', '.join(sorted(profile))}")
        made = self._builder.create_optimization_profile()
        for tensor in inputs:
            shapes = profile[tensor.name]
            if not _fits(shapes, tuple(tensor.shape)):
                raise EngineError(
                    f"{name}: the profile of {tensor.name} is {list(shapes.min)} to {list(shapes.max)}, "
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
            if query.dtype != trt.DataType.FLOAT and query.shape[-1] in FUSED_HEADS:
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
