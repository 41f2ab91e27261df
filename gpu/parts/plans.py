"""Whether a TensorRT-RTX plan for sm80 loads and runs on this GPU: yes or no, and what TensorRT said.

TensorRT for RTX lists sm75, 80, 86, 89, 120 and 121, so nobody promises it for an H100. If the plans load, the whole
tiny pipeline is run on them and held to the CPU's.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu import images
from gpu.catalogue import Options
from gpu.device import need_gpu, open_gpu
from gpu.records import Printer, SkipPartError, guarded

if TYPE_CHECKING:
    from engines.bundle import Bundle

TARGET = "sm80"
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 2e-1, "fp8": 2e-1}
"""Relative error of two-step latents that a precision may cause against arithmetic in float32 on the CPU."""

REFERENCE: str | Path = "tiny"
"""The bundle for the CPU that is the truth."""

_FLAVOUR = "tensorrt-rtx"


def run(printer: Printer, options: Options) -> None:
    """Build, load, run. A bundle that holds plans already is taken as it is."""
    from engines.bundle import open_bundle
    from engines.tensorrt import load

    need_gpu()
    if options.bundle is None:
        raise SkipPartError("give --bundle: a folder of ONNX networks for target onnx, or of plans (see gpu/README.md)")
    toolkit = load(_FLAVOUR)
    printer("TensorRT for RTX", toolkit.version, version=toolkit.version)
    bundle = open_bundle(options.bundle)
    if bundle.manifest.engine is None:
        bundle = open_bundle(_build(options.bundle, options.out / f"tiny-{TARGET}"))
        printer("plans", f"built for {TARGET}", bundle=str(bundle.root), digest=bundle.manifest.digest)
    guarded(printer, "plan for this very GPU", partial(_current, printer, toolkit, options.bundle))
    names = ", ".join(bundle.manifest.engine.compute_capabilities) if bundle.manifest.engine else TARGET
    if not _load_each(printer, bundle, toolkit, names):
        return
    what = f"tiny, plans for {names}"
    guarded(printer, what, partial(_images, printer, options, bundle, what))


def _build(source: Path, out: Path) -> Path:
    """Plans of the ONNX networks, built and sealed by this machine. Raises SkipPartError with what the build said."""
    command = [sys.executable, "-m", "export.engine", str(source), "--target", TARGET, "--flavour", _FLAVOUR]
    command += ["--out", str(out), "--workdir", str(out.parent / "engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SkipPartError(f"the plans cannot be built: {said[-1] if said else done.returncode}")
    return out


def _load_each(printer: Printer, bundle: Bundle, toolkit: Any, names: str) -> bool:
    """Deserialise every plan by itself, on the runtime's device; whether all of them did."""
    from runtime.cuda.plans.loading import load_plan
    from runtime.errors import BackendError

    plans, failed = bundle.manifest.networks, {}
    with closing(open_gpu()) as device:
        for name, spec in plans.items():
            try:
                load_plan(name, bundle.map(spec.file), spec, toolkit, device.info.name)
            except BackendError as error:
                failed[name] = str(error)
        answer = "NO" if failed else "yes"
        reason = f": {next(iter(failed.values()))}" if failed else ""
        printer(
            f"plans for {names} on {device.info.capability}",
            f"{answer}, {len(plans) - len(failed)} of {len(plans)} load{reason}",
            capability=device.info.capability,
            errors=failed,
        )
    return not failed


def _images(printer: Printer, options: Options, bundle: Bundle, what: str) -> None:
    from runtime import Pipeline
    from runtime.cuda.opening import open_cuda

    reference = Pipeline.open(REFERENCE, target="cpu")
    pipeline = Pipeline(open_cuda(bundle, foreign_gpu=True))
    limit = LIMITS[bundle.manifest.precision]
    guarded(printer, what, partial(images.compare, printer, what, pipeline, reference, limit))
    guarded(printer, what, partial(images.measure, printer, what, pipeline, options.pick(50, 5, 5)))
    pipeline.close()
    frugal = Pipeline(open_cuda(bundle, foreign_gpu=True, low_vram=True))
    what = f"{what}, low_vram"
    guarded(printer, what, partial(images.compare, printer, what, frugal, reference, limit))
    frugal.close()


def _current(printer: Printer, toolkit: Any, source: Path) -> None:
    """Whether TensorRT for RTX builds for the GPU that is here, whatever it is, and then loads what it built."""
    from engines.bundle import open_bundle

    bundle = open_bundle(source)
    if bundle.manifest.engine is not None:
        raise SkipPartError("the bundle has no ONNX networks to build from")
    name = "clip"  # The smallest.
    spec = bundle.manifest.networks[name]
    with closing(open_gpu()) as device:
        answer, said = build_and_load(toolkit, bundle.root / spec.file)
        printer(f"a plan of {name} for {device.info.capability} itself", answer, said=said)


def build_and_load(toolkit: Any, onnx: Path) -> tuple[str, list[str]]:
    """Build one network for the GPU that is here and load it: the answer, and what TensorRT said against it."""
    from engines.tensorrt import listening

    trt = toolkit.trt
    with listening(toolkit.logger) as log:
        builder = trt.Builder(toolkit.logger)
        if builder is None:
            return f"NO, no builder: {log.reason}", list(log.errors)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, toolkit.logger)
        if not parser.parse_from_file(str(onnx)):
            return f"NO, not parsed: {parser.get_error(0)}", list(log.errors)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        profile = builder.create_optimization_profile()
        for port in map(network.get_input, range(network.num_inputs)):  # One shape for all: what is free is 16.
            shape = tuple(16 if dim < 0 else dim for dim in port.shape)
            profile.set_shape(port.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return f"NO, not built: {log.reason}", list(log.errors)
        engine = trt.Runtime(toolkit.logger).deserialize_cuda_engine(plan)
        if engine is None:
            return f"NO, built but not loaded: {log.reason}", list(log.errors)
        return f"yes, {plan.nbytes} bytes", list(log.errors)
