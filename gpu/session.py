"""Running the parts one after the other, each in a process of its own, and keeping what they say."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from foundation.files import atomic_file
from gpu.catalogue import Options, Part
from gpu.child import encode
from gpu.records import parse


class Session:
    """The parts that were run so far.

    parts: by letter, each {"title", "state": "done", "skipped" or "failed", "seconds", "records": [...]}.
    """

    def __init__(self, root: Path, options: Options, limit: int, out: Path | None) -> None:
        """root: the repository; limit: seconds a part may run; out: file that is written after every record."""
        self.parts: dict[str, dict[str, Any]] = {}
        self._root, self._options, self._limit, self._out = root, options, limit, out

    def do(self, part: Part) -> None:
        """Run one part to its end, or to the time limit. Raises ArcFlowError where the file cannot be written."""
        entry: dict[str, Any] = {"title": part.title, "state": "running", "seconds": 0.0, "records": []}
        self.parts[part.letter] = entry
        print(f"--- ({part.letter}) {part.title}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", "gpu.child", encode(part, self._options)]
        paths = [str(self._root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, errors="replace", env=environment, start_new_session=True
        ) as child:
            late = not self._listen(child, entry, start)
            if late:
                _kill(child)
            code = child.wait()
        entry["seconds"] = round(time.monotonic() - start, 2)
        if late:
            text = f"stopped after {self._limit} s; what it had measured stands"
            entry["records"].append({"kind": "failed", "what": part.title, "show": text})
        elif code != 0 and not any(record["kind"] == "failed" for record in entry["records"]):
            entry["records"].append({"kind": "failed", "what": part.title, "show": f"ended with {_ending(code)}"})
        entry["state"] = _state(entry["records"])
        self._write()

    def _listen(self, child: subprocess.Popen[str], entry: dict[str, Any], start: float) -> bool:
        """Take the part's lines until it closes its output; False where the time ran out first."""
        lines: queue.Queue[str | None] = queue.Queue()
        stream: IO[str] | None = child.stdout
        if stream is None:
            return True
        threading.Thread(target=_pump, args=(stream, lines), daemon=True).start()
        while True:
            left = start + self._limit - time.monotonic()
            try:
                line = lines.get(timeout=max(left, 0.0))
            except queue.Empty:
                return False
            if line is None:
                return True
            record = parse(line)
            if record is None:
                sys.stderr.write(line)
                continue
            entry["records"].append({key: value for key, value in record.items() if key != "arcflow_gpu"})
            entry["seconds"] = round(time.monotonic() - start, 2)
            print(f"  {record.get('what')}: {record.get('show')}", flush=True)
            self._write()

    def _write(self) -> None:
        if self._out is None:
            return
        document = {"date": time.strftime("%Y-%m-%d"), "smoke": self._options.smoke, "parts": self.parts}
        with atomic_file(self._out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _pump(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _kill(child: subprocess.Popen[str]) -> None:
    """End the part and what it started; it leads a process group of its own."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _state(records: list[dict[str, Any]]) -> str:
    kinds = {record["kind"] for record in records}
    if "failed" in kinds or any(record.get("held") is False for record in records if record.get("check")):
        return "failed"
    return "done" if "measured" in kinds else "skipped"
