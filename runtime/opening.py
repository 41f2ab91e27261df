"""From what a caller names to a loaded host: find and verify the bundle, choose what runs it, load it."""

from __future__ import annotations

import os
from pathlib import Path

from engines.bundle import Bundle, open_bundle
from engines.errors import BundleError
from engines.locate import locate, serves
from engines.schema import SOURCE_TARGET
from runtime.errors import BackendError, RequestError
from runtime.hosts.interface import Host
from runtime.hosts.onnx_network import default_threads

HOSTS = ("python", "native")
BACKENDS = ("tensorrt", "onnxruntime")
_CPU = "cpu"
_MAX_THREADS = 1024


def open_host(
    source: str | Path,
    precision: str | None,
    target: str | None,
    threads: int | None,
    host: str,
    backend: str | None,
    device: str | None,
    low_vram: bool,
    allow_links: bool,
) -> Host:
    """What :meth:`runtime.pipeline.Pipeline.open` opens, with the same arguments and errors."""
    count = default_threads() if threads is None else threads
    if not 1 <= count <= _MAX_THREADS:
        raise RequestError(f"threads is {count}; it must be from 1 to {_MAX_THREADS}")
    if host not in HOSTS:
        raise RequestError(f"host is {host!r}; it must be one of {', '.join(HOSTS)}")
    bundle = find_bundle(source, precision, target, allow_links)
    if host == "native":
        if backend is not None or device is not None or low_vram:
            raise RequestError("backend, device and low_vram are for host='python'; leave them out")
        from runtime.hosts.native import open_native

        return open_native(bundle, threads=count)
    gpu = _check_choice(bundle, backend, device, low_vram)
    if bundle.manifest.engine is not None:
        from runtime.cuda.opening import open_cuda

        return open_cuda(bundle, ordinal=gpu or 0, low_vram=low_vram)
    from runtime.hosts.python import open_python

    return open_python(bundle, threads=count, gpu=gpu)


def find_bundle(source: str | Path, precision: str | None, target: str | None, allow_links: bool = False) -> Bundle:
    """The verified bundle that ``source`` names, held to the precision and target that were asked for."""
    if isinstance(source, Path) or _is_path(source):
        bundle = open_bundle(Path(source), contents="when used", allow_links=allow_links)
    else:
        folder = locate(source, precision, target)
        bundle = open_bundle(folder, contents="when used", allow_links=allow_links)
        if str(bundle.name) != folder.name:
            raise BundleError(f"{folder} holds {bundle.name}, not what its name says: rename it, or open it by path")
    for asked, fits in ((precision, precision == bundle.name.precision), (target, serves(bundle.name, target or ""))):
        if asked is not None and not fits:
            raise BundleError(f"{bundle.root} is {bundle.name}, but {asked!r} was asked for")
    return bundle


def _check_choice(bundle: Bundle, backend: str | None, device: str | None, low_vram: bool) -> int | None:
    """The number of the GPU that runs ``bundle``, None for the CPU. Raises RequestError, BackendError."""
    if backend is not None and backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}")
    gpu = None
    if device is not None:
        from runtime.hosts.onnx_cuda import ordinal_of

        gpu = ordinal_of(device)
    name, root = bundle.name, bundle.root
    on_cpu = (
        f"python -m export.build --model {name.model} --precision fp16 --target {_CPU} (4 bytes of main memory a "
        "weight, half of that on disk)"
    )
    if bundle.manifest.engine is not None:
        if backend == "onnxruntime" or device == _CPU:
            raise BackendError(
                f"{root} holds TensorRT plans, which run on a GPU by TensorRT alone: leave backend and device out, or "
                f"build a bundle for the CPU: {on_cpu}"
            )
        return gpu or 0
    if backend == "tensorrt":
        raise BackendError(
            f"{root} holds ONNX files, and TensorRT runs plans: name a bundle of plans (--target sm89, ...), or build "
            f"one: python -m export.build --model {name.model} --precision {name.precision} --target TARGET"
        )
    if low_vram:
        raise RequestError("low_vram is for TensorRT plans; leave it out")
    if name.target == SOURCE_TARGET and gpu is None:
        raise BackendError(
            f"{root} is for target {name.target!r} (ONNX files for building plans): build plans for your GPU with "
            f"python -m export.engine {root} --target TARGET, run it by ONNX Runtime on a GPU with --device cuda, or "
            f"build a bundle for the CPU: {on_cpu}"
        )
    return gpu


def _is_path(source: str) -> bool:
    return source in (".", "..") or any(mark in source for mark in (os.sep, os.altsep) if mark)
