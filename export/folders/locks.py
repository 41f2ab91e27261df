"""One build at a time in a folder: the next one waits, and says for whom."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from export.errors import ExportError

_POLL = 0.2
"""Seconds between two looks at a lock that another process holds."""

_COMMAND = 200
"""Characters of a holder's command that are shown."""


@contextmanager
def alone(workdir: Path, check: Callable[[], None], tell: Callable[[str], None]) -> Iterator[None]:
    """Work in ``workdir`` alone: wait where another process does, whose results may then be found and used.

    check: raises where memory or disk are short. It is called before anything is made, but after waiting: the process
    that is waited for may be what takes them. tell: told in one line who is waited for. The system lets go of the lock
    of a process that died, however it died. Raises ExportError where ``workdir`` cannot be written or locked.
    """
    from filelock import FileLock, Timeout

    path = workdir / ".lock"
    if not os.path.lexists(path):
        check()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, on_acquired=_sign)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            tell(f"waiting for {_holder(path)}, which builds in {workdir}; another --workdir would not wait")
            lock.acquire(poll_interval=_POLL)
    except OSError as error:
        raise ExportError(
            f"cannot lock {path}: {error.strerror or error}; choose another --workdir, one that you may write to, on a "
            "file system that has locks"
        ) from error
    try:
        check()
        yield
    finally:
        with suppress(OSError):  # Before it is let go: who comes next sees that this file is no longer the lock.
            path.unlink()
        lock.release()


def _sign(file: int) -> None:
    """Write into the lock who holds it."""
    command = shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])
    text = json.dumps({"pid": os.getpid(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "command": command})
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0)


def _holder(path: Path) -> str:
    """Who holds a lock, in words. Its file may be gone or half-written: it is known to be held, but not by whom."""
    try:
        found = json.loads(path.read_text())
        text = f"process {int(found['pid'])} (since {found['since']}: {str(found['command'])[:_COMMAND]})"
        return "".join(filter(str.isprintable, text))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
