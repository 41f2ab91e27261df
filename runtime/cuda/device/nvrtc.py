"""CUDA C++ to machine code at run time, by NVRTC. Needs no GPU and no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.cuda.device.driver import INSTALL
from runtime.cuda.errors import DeviceError

OPTIONS = ("--std=c++17",)


def compiler() -> tuple[Any, tuple[int, int]]:
    """The bindings of NVRTC, and its release. Raises DeviceError where it is not installed."""
    try:
        from cuda.bindings import nvrtc

        return nvrtc, _call(nvrtc, "asking NVRTC for its version", "nvrtcVersion")
    except (ImportError, RuntimeError, OSError) as error:  # The bindings look for the library at the first call.
        raise DeviceError(
            f"the GPU's kernels are compiled with NVRTC, and it is not there ({error}): {INSTALL}"
        ) from error


def compile_image(name: str, source: bytes, headers: Mapping[str, bytes], capability: int) -> bytes:
    """Code of ``source`` for a GPU of that compute capability (90 for 9.0), as cuModuleLoadData takes it.

    headers: what the source includes, by the names it uses. It is machine code (a cubin); for a GPU that is newer than
    NVRTC it is PTX, which the driver compiles. Raises DeviceError.
    """
    nvrtc, _ = compiler()
    known = [int(one) for one in _call(nvrtc, "asking NVRTC for its targets", "nvrtcGetSupportedArchs")]
    older = [one for one in known if one <= capability]
    if not older:
        raise DeviceError(
            f"a GPU of compute capability {capability // 10}.{capability % 10} is too old for NVRTC, which begins at "
            f"{min(known) // 10}.{min(known) % 10}; use a bundle for the target cpu"
        )
    direct = capability in known
    target = f"--gpu-architecture={f'sm_{capability}' if direct else f'compute_{max(older)}'}"
    options = [option.encode() for option in (*OPTIONS, target)]
    names = [header.encode() for header in headers]
    given = (source, name.encode(), len(names), [*headers.values()], names)
    program = _call(nvrtc, "compiling the kernels", "nvrtcCreateProgram", *given)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            said = _read(nvrtc, program, "ProgramLog").split(b"\0")[0].decode("utf-8", "replace").strip()
            raise DeviceError(f"NVRTC cannot compile the kernels for {target.split('=')[1]}: {said}")
        return _read(nvrtc, program, "CUBIN" if direct else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(nvrtc: Any, program: Any, kind: str) -> bytes:
    size = _call(nvrtc, "compiling the kernels", f"nvrtcGet{kind}Size", program)
    buffer = bytearray(size)
    _call(nvrtc, "compiling the kernels", f"nvrtcGet{kind}", program, buffer)
    return bytes(buffer)


def _call(nvrtc: Any, what: str, function: str, *arguments: Any) -> Any:
    """What a function returns besides its status: None, a value or a tuple. Raises DeviceError."""
    status, *values = getattr(nvrtc, function)(*arguments)
    if int(status):
        raise DeviceError(f"{what}: {nvrtc.nvrtcGetErrorString(status)[1].decode('utf-8', 'replace')}")
    return values[0] if len(values) == 1 else tuple(values) or None
