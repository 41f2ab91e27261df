"""What the commands show while they work: bars on a console, and silence from the libraries below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, TaskID

    from export.reporting import Report


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

    return _bars(console, DownloadColumn(), transient=True)


def stages(console: Console) -> AbstractContextManager[Report]:
    """A bar for each stage of a build, with what it does."""
    from rich.progress import TextColumn, TimeElapsedColumn

    return _bars(console, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))


def prompts(console: Console) -> AbstractContextManager[Report]:
    """A bar for each network: prompts done, and the time left."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    return _bars(console, MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


@contextmanager
def _bars(console: Console, *columns: ProgressColumn, transient: bool = False) -> Iterator[Report]:
    from rich.progress import BarColumn, Progress, TextColumn

    name = TextColumn("{task.description:<16}")
    with Progress(name, BarColumn(), *columns, console=console, transient=transient) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int, note: str = "", /) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, note="")
            progress.update(tasks[what], completed=done, total=total or None, note=note)

        yield report
