"""From a bundle of plans to a host on a GPU: trust first, then TensorRT, the GPU, and the plans themselves.

What may not be loaded is rejected before TensorRT sees a byte of it; each rejection says what to do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from engines.bundle import Bundle
from engines.machine import Machine
from engines.memory.parts import PROMPTS
from engines.staleness import require_fresh
from engines.tensorrt import INSTALL, Toolkit, cuda_of, load
from engines.trust import require_ours
from runtime.cuda.errors import DeviceError
from runtime.cuda.host import CudaHost
from runtime.cuda.interface import Device, DeviceInfo
from runtime.cuda.memory.residents import Loader
from runtime.cuda.plans.engine import TensorRTEngine
from runtime.cuda.plans.loading import load_plan, shared_plan
from runtime.cuda.plans.runtime_cache import RuntimeCache
from runtime.errors import BackendError
from runtime.text import load_tokenizers


def open_cuda(
    bundle: Bundle,
    *,
    ordinal: int = 0,
    low_vram: bool = False,
    embeddings: int = PROMPTS,
    foreign_gpu: bool = False,
) -> CudaHost:
    """Load an opened bundle of plans on GPU ``ordinal``.

    low_vram: text encoders and the conditioner leave the GPU when they are done, and the backbone while they are there;
    a new prompt then costs their loading. embeddings: prompts whose encodings are cached at least. foreign_gpu: try
    plans for another compute capability too. Raises TrustError, FlavourError, StaleBundleError, DeviceError,
    DeviceMemoryError, BackendError, BundleError.
    """
    manifest, engine = bundle.manifest, bundle.manifest.engine
    if engine is None:
        raise BackendError(f"{bundle.root} holds no plans: build them with python -m export.engine {bundle.root}")
    require_ours(manifest)
    toolkit = load(engine.flavour)
    tokenizers = load_tokenizers(bundle)
    from runtime.cuda.device.gpu import open_device

    device = open_device(ordinal)
    try:
        # Whether plans for another compute capability are taken is left to TensorRT.
        capabilities = tuple(engine.compute_capabilities) if foreign_gpu else (device.info.capability,)
        require_fresh(bundle, Machine(gpus=capabilities, flavours={toolkit.flavour: toolkit.version}))
        check_driver(toolkit, device.info)
        cache = RuntimeCache(bundle.root, toolkit, device.info.capability)
        loaders = _plan_loaders(bundle, toolkit, device, ordinal, cache, remember=low_vram)
    except BaseException:
        device.close()
        raise
    return CudaHost(
        manifest,
        device,
        loaders,
        tokenizers,
        backend=f"{toolkit.flavour} {toolkit.version}, {device.info.name} ({device.info.capability})",
        low_vram=low_vram,
        embeddings=embeddings,
        after=cache.save,
        closing=cache.close,
    )


def check_driver(toolkit: Toolkit, info: DeviceInfo) -> None:
    """Raise DeviceError where the driver is too old for this TensorRT."""
    needed, found = cuda_of(toolkit.flavour), info.driver.partition(".")[0]
    if needed is not None and found.isdigit() and int(found) < needed:
        raise DeviceError(
            f"the driver of {info.name} knows CUDA {info.driver}, and {toolkit.flavour} {toolkit.version} is for CUDA "
            f"{needed}: update the driver, or install the TensorRT for CUDA {found} ({INSTALL[toolkit.flavour]})"
        )


def _plan_loaders(
    bundle: Bundle, toolkit: Toolkit, device: Device, ordinal: int, cache: RuntimeCache, *, remember: bool
) -> Mapping[str, Loader]:
    """What puts each network on the device; plans that another session of the process has loaded are shared.

    remember: verified bytes stay mapped, so that a plan which is loaded again is not hashed again.
    """
    digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}
    verified = functools.cache(bundle.map) if remember else bundle.map
    gpu = f"{device.info.name} ({device.info.capability})"

    def load(name: str) -> TensorRTEngine:
        spec = bundle.manifest.networks[name]
        key = (digests[spec.file], toolkit.flavour, ordinal)
        plan = shared_plan(key, lambda: load_plan(name, verified(spec.file), spec, toolkit, gpu))
        return TensorRTEngine(device, plan, cache)

    return {name: functools.partial(load, name) for name in bundle.manifest.networks}
