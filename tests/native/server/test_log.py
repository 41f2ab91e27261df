"""The log of ``arcflow-serve`` and its reader."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
from pathlib import Path

from benchmarks.serving import parse_metrics, send
from engines.locate import BUILT_IN

DROPPED = "arcflow_log_dropped_lines_total"


def test_a_reader_that_stalls_does_not_stop_the_service(native_build: Path, onnxruntime_library: Path) -> None:
    command = [native_build / "arcflow-serve", "--port", "0", "--log-format", "json", "--threads", "1"]
    command += ["--library", onnxruntime_library, "--model", BUILT_IN / "tiny-fp16-cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            port = json.loads(process.stderr.readline())["port"]
            assert json.loads(process.stderr.readline())["event"] == "ready"
            # Nobody reads from here on: more lines than the pipe and the queue hold.
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                for _ in range(2000):
                    assert send(connection, "GET", "/health", headers={"x-request-id": "x" * 128}).status == 200
                dropped = parse_metrics(send(connection, "GET", "/metrics").body.decode())[DROPPED]
                assert 0 < dropped < 2000
                for line in process.stderr:
                    entry = json.loads(line)
                    if entry["event"] == "log lines dropped":
                        break
                assert entry["lines"] >= dropped
                assert send(connection, "GET", "/health", headers={"x-request-id": "back"}).status == 200
            assert json.loads(process.stderr.readline())["request_id"] == "back"
            process.send_signal(signal.SIGTERM)
            assert [json.loads(line)["event"] for line in process.stderr] == ["draining", "stopping"]
            assert process.wait(10) == 0
        finally:
            process.kill()
