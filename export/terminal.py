"""What the commands show while they work: bars on a console, lines in a log, and silence from the libraries below."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

    from export.reporting import Report


_EVERY = 5.0
"""Seconds between two lines about the progress of one thing, at least."""


def hush_libraries() -> None:
    """Turn off the progress bars and remarks of diffusers and transformers."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def reading(console: Console) -> AbstractContextManager[Report]:
    """A bar while the sources are digested; gone when they are."""
    from rich.progress import DownloadColumn

    return _bars(console, "read", DownloadColumn(), transient=True)


def stages(console: Console) -> AbstractContextManager[Report]:
    """A bar for each stage of a build, with what it does."""
    from rich.progress import TextColumn, TimeElapsedColumn

    return _bars(console, "build", TimeElapsedColumn(), TextColumn("{task.fields[note]}"))


def prompts(console: Console) -> AbstractContextManager[Report]:
    """A bar for each network: prompts done, and the time left."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    return _bars(console, "run", MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


@contextmanager
def _bars(console: Console, verb: str, *columns: ProgressColumn, transient: bool = False) -> Iterator[Report]:
    if not console.is_terminal:
        yield _lines(console, verb)
        return
    from rich.progress import BarColumn, Progress, TextColumn

    name = TextColumn("{task.description:<16}")
    with Progress(name, BarColumn(), *columns, console=console, transient=transient) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int, note: str = "", /) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, note="")
            progress.update(tasks[what], completed=done, total=total or None, note=note)

        yield report


def _lines(console: Console, verb: str) -> Report:
    """Where no bar can be drawn, a line for whatever begins or ends, and now and then for a tenth of it that is done:
    ``[  12 s] build t5: 30 %``."""
    start, last, said_at = time.monotonic(), ("", "", -1), 0.0

    def report(what: str, done: int, total: int, note: str = "", /) -> None:
        nonlocal last, said_at
        tenth, now = 10 * done // total if total else 0, time.monotonic() - start
        news = (what, note) != last[:2] or (tenth != last[2] and (tenth == 10 or now - said_at >= _EVERY))
        if news:
            last, said_at = (what, note, tenth), now
            said = " ".join(part for part in (note, f"{10 * tenth} %" if total else "") if part)
            line = f"[{now:5.0f} s] {verb} {what}: {said}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return report
