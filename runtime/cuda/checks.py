"""Whether plans may be loaded here, asked before TensorRT sees a byte of them: each rejection says what to do."""

from __future__ import annotations

from engines.bundle import Bundle
from engines.machine import Machine
from engines.manifest import Engine
from engines.staleness import require_fresh
from engines.tensorrt import INSTALL, Toolkit, cuda_of, load
from engines.trust import require_ours
from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import DeviceInfo
from runtime.errors import BackendError


def check_trusted(bundle: Bundle) -> Toolkit:
    """The TensorRT for the bundle's plans, which this machine built. No GPU is needed for this.

    Raises TrustError for plans from elsewhere, FlavourError where their TensorRT is missing, BackendError for a bundle
    without plans.
    """
    engine = _engine(bundle)
    require_ours(bundle.manifest)
    return load(engine.flavour)


def check_device(bundle: Bundle, toolkit: Toolkit, info: DeviceInfo, *, foreign_gpu: bool = False) -> None:
    """Raise unless the plans are for this GPU, this TensorRT, this driver, and of the ONNX that lies beside them.

    foreign_gpu: leave it to TensorRT whether it takes plans for another compute capability.
    Raises StaleBundleError with all that differs and the command that mends it; DeviceError for an old driver.
    """
    engine = _engine(bundle)
    capabilities = tuple(engine.compute_capabilities) if foreign_gpu else (info.capability,)
    require_fresh(bundle, Machine(gpus=capabilities, flavours={toolkit.flavour: toolkit.version}))
    needed, found = cuda_of(toolkit.flavour), info.driver.partition(".")[0]
    if needed is not None and found.isdigit() and int(found) < needed:
        raise DeviceError(
            f"the driver of {info.name} knows CUDA {info.driver}, and {toolkit.flavour} {toolkit.version} is for CUDA "
            f"{needed}: update the driver, or install the TensorRT for CUDA {found} ({INSTALL[toolkit.flavour]})"
        )


def _engine(bundle: Bundle) -> Engine:
    manifest = bundle.manifest
    plain = [name for name, network in manifest.networks.items() if network.format != "plan"]
    if manifest.engine is None or plain:
        raise BackendError(
            f"{bundle.root} holds ONNX files, and TensorRT runs plans: build them with python -m export.engine "
            f"{bundle.root} --target TARGET, or leave --backend out"
        )
    return manifest.engine
