"""Not a test: kills builds, once at each kind of event that a build reports, each in a forked process.

Usage: python -m tests.export.commands.killed_builds BASE ADAPTER ROOT. Prints a JSON object: the events at which a
build was killed, those at which it was to be killed, and the digests of its bundle and of an undisturbed build's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from export.assembling.bundle import build
from export.assembling.inputs import inspect
from export.assembling.wanted import Wanted
from export.precision import Precision
from export.reporting import Report, silent
from export.sources.models import choose
from export.students.subject import open_subject
from export.tensorrt.plans import prepare
from export.tensorrt.profiles import choose_shapes
from export.terminal import hush_libraries
from foundation.files import sha256_tree

TARGET = "sm120"


def main() -> None:
    base, adapter, root = map(Path, sys.argv[1:])
    hush_libraries()
    read, write = os.pipe()
    undisturbed = wanted_in(root / "undisturbed")
    status = forked(undisturbed, base, adapter, lambda *event: os.write(write, f"{kind(*event)}\n".encode()))
    os.close(write)
    with os.fdopen(read) as stream:
        events = list(dict.fromkeys(line.rstrip("\n") for line in stream))
    disturbed, killed = wanted_in(root / "disturbed"), []
    for wanted in filter(worth_it, events):
        result = forked(disturbed, base, adapter, lambda *event, wanted=wanted: kill_at(wanted, *event))
        if os.WIFSIGNALED(result) and os.WTERMSIG(result) == signal.SIGKILL:
            killed.append(wanted)
    last = forked(disturbed, base, adapter, silent)
    digests = [sha256_tree(each.out) if each.out.is_dir() else "" for each in (undisturbed, disturbed)]
    print(
        json.dumps(
            {
                "events": [event for event in events if worth_it(event)],
                "killed": killed,
                "statuses": [status, last],
                "digests": digests,
            }
        )
    )


def wanted_in(root: Path) -> Wanted:
    spec = choose("flux")
    shapes = choose_shapes(spec.limits, "256x256", "1", "512")
    return Wanted(
        spec=spec, precision=Precision.BF16, target=TARGET, out=root / "flux-bf16-sm120", workdir=root / "work",
        shapes=shapes,
    )  # fmt: skip


def forked(wanted: Wanted, base: Path, adapter: Path, report: Report) -> int:
    """The wait status of a process that builds."""
    process = os.fork()
    if process == 0:
        try:
            inputs = inspect(wanted, open_subject(wanted.spec, str(base), str(adapter))).digested()
            setup = prepare(TARGET, wanted.precision, wanted.shapes, wanted.workdir / "timing", None, 0)
            build(inputs, setup, report)
        except BaseException:  # noqa: BLE001  the parent must not see it raised again
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1]


def worth_it(event: str) -> bool:
    """Whether to kill at that kind of event: at every one of T5's, and at one of each other stage's.

    What T5 goes through the others go through, and tracing them again and again takes minutes.
    """
    stage, what = event.split("\t")
    return stage in ("t5", "bundle") or what in ("write", "progress")


def kill_at(wanted: str, what: str, done: int, total: int, note: str = "") -> None:
    if kind(what, done, total, note) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


def kind(what: str, _done: int, _total: int, note: str = "") -> str:
    """A stage and what it says, less what differs between two builds or is too fine to be told apart."""
    return f"{what}\t" + ("progress" if what.startswith("plan") and note != "done" else note.split("/")[0])


if __name__ == "__main__":
    main()
