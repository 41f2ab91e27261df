"""``arcflow-serve`` as a child process, and requests to it: for the benchmarks and for the tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.locate import BUILT_IN
from foundation.errors import ArcFlowError
from runtime.hosts.native import onnxruntime_library

GENERATIONS = "/v1/images/generations"
NATIVE = Path(os.environ.get("ARCFLOW_NATIVE_BUILD") or Path(__file__).parents[1] / "build" / "native").resolve()
"""Where ``make native`` builds."""
PROGRAM = NATIVE / "bin" / "arcflow-serve"


class ServingError(ArcFlowError):
    """The server is not built, or what runs its networks is not installed."""


def serve_tiny(*options: str, program: Path = PROGRAM) -> Server:
    """A server of the embedded model, with the ONNX Runtime of this environment. Raises ServingError, RuntimeError."""
    library = onnxruntime_library()
    if not program.is_file() or library is None:
        raise ServingError(f"{program} or the package onnxruntime is missing: run make native")
    return Server(program, ["--model", str(BUILT_IN / "tiny-fp16-cpu"), "--library", str(library), *options])


@dataclass(frozen=True)
class Answer:
    """What the service answered. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


class Server:
    """A running ``arcflow-serve`` on a free port of this machine. Ends with the ``with`` block at the latest."""

    def __init__(
        self,
        program: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        """Start it and wait until it takes requests. Raises RuntimeError with its log where it does not within 60 s.

        user: the number of another user, whose process it is then; only root may ask for that.
        """
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (lives as long as the server)
        command = [str(program), "--port", "0", "--log-format", "json", *options]
        variables = {**os.environ, **(environment or {})}
        # Linux shares cores between sessions: in ours a busy server would take its client's time, on any core.
        self.process = subprocess.Popen(command, stderr=self._log, env=variables, user=user, start_new_session=True)
        try:
            self.port = int(self._event("listening")["port"])
            self._event("ready")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it at once if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def log(self) -> list[dict[str, Any]]:
        """Every line of the log so far."""
        data = os.pread(self._log.fileno(), 1 << 30, 0)
        return [json.loads(line) for line in data.splitlines() if line.startswith(b"{")]

    def _event(self, name: str) -> dict[str, Any]:
        for _ in range(6000):
            for line in self.log():
                if line["event"] == name:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        text = os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")
        raise RuntimeError(f"arcflow-serve did not become {name}: {text}")

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """A connection of its own, to be closed by the caller."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return send(connection, method, path, body, headers)

    def get(self, path: str) -> Answer:
        """GET."""
        return self.request("GET", path)

    def generate(self, **fields: object) -> Answer:
        """POST these fields for images."""
        headers = {"Content-Type": "application/json"}
        return self.request("POST", GENERATIONS, json.dumps(fields).encode(), headers)

    def metrics(self) -> dict[str, float]:
        """The metrics by name with labels."""
        return parse_metrics(self.get("/metrics").body.decode())

    def processor_seconds(self) -> float:
        """Processor time that the process has had, of all its threads."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Main memory that the process holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection that may be kept."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    names = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, names, response.read())


def summed(metrics: Mapping[str, float], name: str) -> float:
    """A metric over all its labels: ``arcflow_images_total`` of every model. 0 where there is none."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*\})?) (\S+)')


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format, strictly: raises ValueError at a line that it does not allow."""
    values: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            if kind not in ("counter", "gauge", "histogram") or name in typed:
                raise ValueError(line)
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = _SAMPLE.fullmatch(line)
            if match is None or match[1] in values:
                raise ValueError(line)
            name = match[1].partition("{")[0]
            if name not in typed and re.sub(r"_(bucket|sum|count)$", "", name) not in typed:
                raise ValueError(line)
            values[match[1]] = float(match[2])
    return values
