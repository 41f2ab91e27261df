"""From a bundle of plans to a host on a GPU: trust first, then TensorRT, the GPU, and the plans themselves.

What may not be loaded is rejected before TensorRT sees a byte of it; each rejection says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.bundle import Bundle
from engines.machine import Machine
from engines.schema import Engine
from engines.staleness import require_fresh
from engines.tensorrt import INSTALL, Toolkit, cuda_of, load
from engines.trust import require_ours
from runtime.cuda.errors import DeviceError
from runtime.cuda.host import EMBEDDINGS, CudaHost
from runtime.cuda.interface import Device, DeviceInfo
from runtime.cuda.memory.residents import Loader
from runtime.cuda.plans.engine import TensorRTEngine
from runtime.cuda.plans.loading import SHARED, PlanLibrary, load_plan
from runtime.cuda.plans.runtime_cache import RuntimeCache, cache_path
from runtime.errors import BackendError
from runtime.text import load_tokenizers


def open_cuda(
    bundle: Bundle,
    *,
    ordinal: int = 0,
    low_vram: bool = False,
    embeddings: int = EMBEDDINGS,
    foreign_gpu: bool = False,
) -> CudaHost:
    """Load an opened bundle of plans on GPU ``ordinal``.

    low_vram: text encoders leave the GPU when they are done, and the backbone while they are there; a new prompt then
    costs their loading. embeddings: encodings of prompts that are cached at least. foreign_gpu: try plans for another
    compute capability too. Raises TrustError, FlavourError, StaleBundleError, DeviceError,
    DeviceMemoryError, BackendError, BundleError.
    """
    toolkit = check_trusted(bundle)
    manifest = bundle.manifest
    tokenizers = load_tokenizers(bundle)
    from runtime.cuda.device.gpu import open_device

    device = open_device(ordinal)
    try:
        check_device(bundle, toolkit, device.info, foreign_gpu=foreign_gpu)
        cache = RuntimeCache(cache_path(bundle.root, toolkit, device.info.capability), toolkit)
        plans = PlanLoader(bundle, toolkit, device, ordinal, cache, keep=low_vram)
    except BaseException:
        device.close()
        raise
    return CudaHost(
        manifest,
        device,
        plans.loaders(),
        tokenizers,
        backend=describe(toolkit, device.info),
        low_vram=low_vram,
        embeddings=embeddings,
        after=cache.save,
        closing=cache.close,
    )


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


def describe(toolkit: Toolkit, info: DeviceInfo) -> str:
    """What runs the networks: "tensorrt-rtx 1.7.1.116, NVIDIA GeForce RTX 4090 (sm89)"."""
    return f"{toolkit.flavour} {toolkit.version}, {info.name} ({info.capability})"


class PlanLoader:
    """Loads the plans of a bundle for one session; those that another session has loaded are shared."""

    def __init__(
        self,
        bundle: Bundle,
        toolkit: Toolkit,
        device: Device,
        ordinal: int,
        cache: RuntimeCache,
        *,
        keep: bool,
        library: PlanLibrary = SHARED,
    ) -> None:
        """keep: verified bytes stay mapped, so that a plan which is loaded again is not hashed again."""
        self._bundle = bundle
        self._toolkit = toolkit
        self._device = device
        self._ordinal = ordinal
        self._cache = cache
        self._keep = keep
        self._library = library
        self._verified: dict[str, memoryview] = {}
        self._digests = {entry.path: entry.sha256 for entry in bundle.manifest.files}

    def loaders(self) -> Mapping[str, Loader]:
        """What puts each network on the device."""
        return {name: (lambda name=name: self.load(name)) for name in self._bundle.manifest.networks}  # type: ignore[misc]

    def load(self, name: str) -> TensorRTEngine:
        """One network. Raises BundleError, BackendError, DeviceMemoryError."""
        spec = self._bundle.manifest.networks[name]
        key = (self._digests[spec.file], self._toolkit.flavour, self._ordinal)
        info = self._device.info
        plan = self._library.acquire(
            key,
            lambda: load_plan(name, self._verify(spec.file), spec, self._toolkit, f"{info.name} ({info.capability})"),
        )
        return TensorRTEngine(self._device, plan, self._cache, lambda: self._library.release(key))

    def _verify(self, path: str) -> memoryview:
        """The plan's bytes, mapped and hashed just now, or before where they are kept."""
        if path in self._verified:
            return self._verified[path]
        view = self._bundle.map(path)
        if self._keep:
            self._verified[path] = view
        return view
