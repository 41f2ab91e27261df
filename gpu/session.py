"""Running the parts one after the other, each in a process of its own, and keeping what they say.

``python -m gpu.session TEXT`` is such a process.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from foundation.measuring import keep
from gpu.card import watched
from gpu.catalogue import Options, Part, missing
from gpu.records import KEY, Printer, guarded, parse

_LEAST_SECONDS = 5
"""With less time left nothing is begun any more."""

_WIDTH = 58
_MARKS = {True: "yes", False: "NO", None: ""}


class Session:
    """The parts that were run so far.

    parts: by name, each {"title", "state": "done", "skipped" or "failed", "seconds", "records": [...]}.
    """

    def __init__(
        self,
        root: Path,
        options: Options,
        out: Path | None = None,
        limit: int | None = None,
        total: int | None = None,
        begun: Mapping[str, Any] | None = None,
    ) -> None:
        """root: the repository; out: file to which the record is written after every figure.

        limit: seconds that a part, or each mode of it, may run, in place of the part's own; total: seconds from now on
        for all of them; begun: what the record begins with.
        """
        self.parts: dict[str, dict[str, Any]] = {}
        self._record = {**(begun or {}), "smoke": options.smoke, "parts": self.parts}
        self._root, self._options, self._limit, self._out = root, options, limit, out
        self._end = math.inf if total is None else time.monotonic() + total

    def do(self, part: Part) -> None:
        """Run one part, each mode in a process of its own. Raises ArcFlowError where the file cannot be written.

        What ends this process (an interrupt, an error) ends the part first; what it had said is kept.
        """
        entry: dict[str, Any] = {"title": part.title, "state": "running", "seconds": 0.0, "records": []}
        self.parts[part.name] = entry
        print(f"--- {part.name}: {part.title}", flush=True)
        start = time.monotonic()
        if not part.modes:
            self._run(part, self._options, entry, start)
        for mode in (self._options.modes or part.usual) if part.modes else ():
            self._run(part, replace(self._options, modes=(mode,)), entry, start)
        entry["seconds"] = round(time.monotonic() - start, 2)
        entry["state"] = _state(entry["records"])
        self._write()

    def _run(self, part: Part, options: Options, entry: dict[str, Any], start: float) -> None:
        """One process, until it ends, is late or this one is interrupted."""
        what = part.title if options.modes is None or not part.modes else f"{part.name}, {options.modes[0]}"
        began, told = time.monotonic(), len(entry["records"])
        seconds = min(self._limit or part.limit, self._end - began)

        def note(kind: str, show: str) -> None:
            entry["records"].append({"kind": kind, "what": what, "show": show})
            self._write()

        if self._end - began < _LEAST_SECONDS:
            note("skipped", "no time was left for it")
            return
        command = [sys.executable, "-m", "gpu.session", pickle.dumps((part, options)).hex()]
        paths = [str(self._root), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, errors="replace", env=environment, start_new_session=True
        ) as child:
            try:
                late = not self._listen(child, entry, start, began + seconds)
            except BaseException:
                entry["state"] = "failed"
                _kill(child)
                note("failed", "interrupted; what it had measured stands")
                raise
            if late:
                _kill(child)
            code = child.wait()
        if late:
            note("failed", f"stopped after {seconds:.0f} s; what it had measured stands")
        elif code != 0 and not any(record["kind"] == "failed" for record in entry["records"][told:]):
            note("failed", f"ended with {f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'}")

    def _listen(self, child: subprocess.Popen[str], entry: dict[str, Any], start: float, end: float) -> bool:
        """Take the part's lines until it closes its output; False where ``end`` came first."""
        lines: queue.Queue[str | None] = queue.Queue()
        stream: IO[str] | None = child.stdout
        if stream is None:
            return True
        threading.Thread(target=_pump, args=(stream, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=max(end - time.monotonic(), 0.0))
            except queue.Empty:
                return False
            if line is None:
                return True
            record = parse(line)
            if record is None:
                sys.stderr.write(line)
                continue
            entry["records"].append({key: value for key, value in record.items() if key != KEY})
            entry["seconds"] = round(time.monotonic() - start, 2)
            print(f"  {record.get('what')}: {record.get('show')}", flush=True)
            self._write()

    def _write(self) -> None:
        if self._out is not None:
            keep(self._out, self._record)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """For the table: part, what was measured, whether its aim was held, the figure; "skipped", "failed" as such."""
        yield "", "what", "held", "figure"
        for name, part in self.parts.items():
            for record in part["records"]:
                kind, what = record["kind"], str(record.get("what", ""))
                what = what if len(what) <= _WIDTH else what[: _WIDTH - 1] + "…"
                yield name, what, _MARKS[record.get("held")] if kind == "measured" else kind, str(record.get("show"))
            yield name, f"({part['state']} in {part['seconds']:.0f} s)", "", ""


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


def _state(records: list[dict[str, Any]]) -> str:
    """A check that was not held counts as failed, an aim does not."""
    kinds = {record["kind"] for record in records}
    if "failed" in kinds or any(record.get("held") is False for record in records if record.get("check")):
        return "failed"
    return "done" if "measured" in kinds else "skipped"


def child(part: Part, options: Options) -> int:
    """Run the part in this process; 0 where nothing failed."""
    if lacking := missing(part):
        Printer(part.name).line("skipped", what=part.title, show=f"needs {', '.join(lacking)}, not installed here")
        return 0
    with watched() as card:
        printer = Printer(part.name, card)
        return 0 if guarded(printer, part.title, lambda: import_module(part.module).run(printer, options)) else 1


if __name__ == "__main__":
    sys.exit(child(*pickle.loads(bytes.fromhex(sys.argv[1]))))
