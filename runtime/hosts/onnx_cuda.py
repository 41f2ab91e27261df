"""ONNX Runtime's CUDA provider: whether it can start on this machine, how it is asked for, and what it really took.

ONNX Runtime replaces a provider that cannot start by the CPU and says so in a log at most. Here nothing is replaced:
the package, CUDA's libraries, the driver and the GPU are looked at before a network is loaded, and the nodes of each
network are counted afterwards by the provider that they are on.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runtime.cuda.errors import EXHAUSTED, DeviceError, DeviceMemoryError
from runtime.errors import BackendError, RequestError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
INSTALL = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
_DEVICE = re.compile(r"cuda(?::([0-9]{1,2}))?")
_PRODUCTS = re.compile(r"MatMul|Gemm|Conv|Attention")
"""Operators that must never be left to the CPU. Shape arithmetic may be: the provider itself puts it there."""
_OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate memory|CUDA failure 2:", re.IGNORECASE)
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE = 100
_LOG_FATAL, _LOG_WARNING = 4, 2


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a network are: their number by provider, and the operators that are on the CPU."""

    provider: str
    nodes: Mapping[str, int]
    on_cpu: tuple[str, ...]


def ordinal_of(device: str) -> int | None:
    """The number of a GPU, for "cuda" (0) or "cuda:N"; None for "cpu". Raises RequestError for anything else."""
    if device == "cpu":
        return None
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise RequestError(f"device is {device!r}; it must be cpu, cuda, or cuda:N for the GPU of that number")
    return int(found[1] or 0)


def start(name: str, model: bytes, options: Any, ordinal: int) -> tuple[Any, Placement]:
    """A session on that GPU, and where its nodes are. Raises DeviceError where the CUDA provider cannot start here."""
    import onnxruntime

    check_provider(ordinal)
    asked = {
        "device_id": str(ordinal),
        "arena_extend_strategy": "kSameAsRequested",  # No more of the GPU than is used.
        "cudnn_conv_algo_search": "HEURISTIC",  # A search by timing could choose, and draw, differently each time.
        "use_tf32": "0",  # A float32 bundle is computed in float32.
    }
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Without a log of its own: what matters of it is found out and raised.
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(CUDA, asked), CPU], enable_fallback=0)
    finally:
        onnxruntime.set_default_logger_severity(_LOG_WARNING)  # The package's own default; it cannot be asked for.
    return session, placement(name, session)


def check_provider(ordinal: int) -> None:
    """Raises DeviceError, with the command to run, where the CUDA provider cannot start on that GPU."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if CUDA not in available:
        raise DeviceError(
            f"this ONNX Runtime ({onnxruntime.__version__}) has no {CUDA}, only {', '.join(available)}: {INSTALL}"
        )
    missing = _preload()
    _check_driver(ordinal, getattr(onnxruntime, "cuda_version", ""))
    if missing:
        raise DeviceError(f"ONNX Runtime's {CUDA} cannot start: {missing} cannot be loaded; install them: {INSTALL}")


def placement(name: str, session: Any) -> Placement:
    """Where a network really is. Raises DeviceError where the GPU did not take it, or took it without its products."""
    if CUDA not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime put the {name} network on {', '.join(session.get_providers())} in place of {CUDA}, which "
            f"could not start; see that the packages fit each other: {INSTALL}"
        )
    nodes: dict[str, int] = {}
    on_cpu: set[str] = set()
    for part in session.get_provider_graph_assignment_info():
        found = part.get_nodes()
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(found)
        if part.ep_name != CUDA:
            on_cpu.update(node.op_type for node in found)
    products = sorted(kind for kind in on_cpu if _PRODUCTS.search(kind))
    if products or not nodes.get(CUDA):
        what = f"its {', '.join(products)}" if products else "all its nodes"
        raise DeviceError(
            f"{CUDA} cannot run the {name} network: {what} would be left to the CPU; take a bundle of another "
            "precision (fp32, fp16), or TensorRT plans"
        )
    return Placement(CUDA, nodes, tuple(sorted(on_cpu)))


def explain(error: Exception, doing: str) -> BackendError:
    """ONNX Runtime's failure as ours. doing: what failed, "the backbone network failed on ..."."""
    if _OUT_OF_MEMORY.search(str(error)):
        return DeviceMemoryError(
            f"{doing}: {EXHAUSTED}; ask for fewer or smaller images at once, or close what else uses this GPU"
        )
    return BackendError(f"{doing}: {error}")


@cache
def _preload() -> str:
    """Load CUDA's libraries from the packages that carry them; returns the names of those missing, "" for none.

    They lie where the system's loader does not look, so that ONNX Runtime finds only those that are loaded already. By
    itself it looks beside its own package alone; here first wherever Python finds the package ``nvidia``, and before
    that at what an imported torch has loaded, of which there should be no second copy.
    """
    import onnxruntime

    preload: Callable[..., None] | None = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return ""

    def missing(**options: Any) -> str:
        printed = io.StringIO()  # It tells of failures on stdout, and in no other way.
        with contextlib.redirect_stdout(printed):
            preload(**options)
        return ", ".join(re.findall(r"^Failed to load ([^:]+):", printed.getvalue(), re.MULTILINE))

    torch = _torch_libraries(getattr(onnxruntime, "cuda_version", ""))
    if torch is not None and not missing(directory=str(torch)):
        return ""
    for folder, of_cudnn in _nvidia_libraries():
        missing(directory=str(folder), cuda=not of_cudnn, cudnn=of_cudnn)
    return missing()


def _nvidia_libraries() -> list[tuple[Path, bool]]:
    """The folders of libraries in the packages that NVIDIA's wheels share, and whether it is cuDNN's."""
    try:
        found = importlib.util.find_spec("nvidia")
    except ValueError:  # A module of that name that was not imported from anywhere.
        found = None
    patterns = ("*/bin", "*/bin/*") if sys.platform == "win32" else ("*/lib",)
    return [
        (folder, folder.relative_to(root).parts[0] == "cudnn")
        for root in map(os.path.abspath, (found.submodule_search_locations or ()) if found else ())
        for pattern in patterns
        for folder in sorted(Path(root).glob(pattern))
        if folder.is_dir()
    ]


def _torch_libraries(built_for: str) -> Path | None:
    """The folder of the libraries of a torch that was imported already and is for the same CUDA; else None."""
    torch: Any = sys.modules.get("torch")
    cuda = getattr(getattr(torch, "version", None), "cuda", None)
    if not cuda or not built_for or cuda.partition(".")[0] != built_for.partition(".")[0]:
        return None
    folder = Path(torch.__file__).absolute().parent / "lib"
    return folder if folder.is_dir() else None


def _check_driver(ordinal: int, built_for: str) -> None:
    """Raises DeviceError where there is no driver, no such GPU, or a driver older than the CUDA of the package.

    Asked through the driver's C interface, so that this way to a GPU needs no further package.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise DeviceError(
            f"there is no NVIDIA driver here ({_DRIVER} cannot be loaded): install it, or use --device cpu"
        ) from error
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    major = built_for.partition(".")[0]
    if major.isdigit() and version.value < int(major) * 1000:
        raise DeviceError(
            f"the NVIDIA driver is for CUDA {version.value // 1000}.{version.value % 1000 // 10} at most, and this "
            f"ONNX Runtime is for CUDA {built_for}: update the driver"
        )
    status = driver.cuInit(0)
    if status == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    elif status != _NO_DEVICE:
        raise DeviceError(
            f"the NVIDIA driver cannot start (CUDA error {status}): run nvidia-smi, and restart the machine"
        )
    if ordinal >= count.value:
        there = f"GPUs 0 to {count.value - 1}" if count.value > 1 else "GPU 0 alone" if count.value else "no GPU"
        raise DeviceError(f"there is no GPU {ordinal} here, but {there}: see nvidia-smi and CUDA_VISIBLE_DEVICES")
