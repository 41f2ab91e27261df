"""A Triton server on this machine: the one on the path, or the one in the package ``nvidia-pytriton``."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
START = 60.0
"""Seconds until it must be ready."""


def find_server() -> Path | None:
    """The program ``tritonserver``; None where there is none."""
    if found := shutil.which("tritonserver"):
        return Path(found)
    spec = find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "tritonserver" / "bin" / "tritonserver"


@dataclass(frozen=True)
class Triton:
    """A running server on the loopback address."""

    http: int
    grpc: int
    log: Path


@contextmanager
def run(program: Path, repository: Path, work: Path) -> Iterator[Triton]:
    """The server over ``repository``, ready; it ends with the block."""
    http, grpc = _free_port(), _free_port()
    command = [
        str(program),
        f"--model-repository={repository}",
        "--allow-metrics=false",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    backends = program.parents[1] / "backends"
    if backends.is_dir():  # The package's server looks in the image's places, and lacks a stub for this Python.
        own = work / "backends"
        shutil.copytree(backends, own)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = program.parents[1] / "python_backend_stubs" / version / "triton_python_backend_stub"
        (own / "python" / stub.name).unlink(missing_ok=True)
        shutil.copy(stub, own / "python")
        (own / "python" / stub.name).chmod(0o755)
        # Its Python hears no PYTHONPATH; of this environment it knows by the first `python3` on the path.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        first = own / "python" / "triton_python_backend_utils.py"
        places = f"import sys\n\nsys.path[:0] = {[str(ROOT), *filter(None, sys.path)]!r}\n"
        first.write_text(places + first.read_text(encoding="utf-8"), encoding="utf-8")
        command.append(f"--backend-directory={own}")
        libraries = [sysconfig.get_config_var("LIBDIR"), str(program.parents[2].with_name("nvidia_pytriton.libs"))]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, environment.get("LD_LIBRARY_PATH", "")])
    log = work / "triton.log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(http, process, log)
            yield Triton(http, grpc, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server is not ready:\n{log.read_text(errors='replace')[-4000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
