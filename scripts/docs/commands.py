"""The commands of the project, found in its source, and a page with the help of each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.docs.links import ROOT

PACKAGES = ("runtime", "export", "engines", "arcflow", "integrations")
PROGRAMS = ("gpu", "benchmarks")
"""Folders of programs that are run by path, not packages."""

_GUARD = 'if __name__ == "__main__":'
_PARSER = "ArgumentParser("
_HEAD = """# Commands

Made from the commands' own `--help` when the site is built. Bad input ends a command with one line and exit code 2;
nothing is half-written then. Ctrl-C ends it with exit code 130.

The C++ programs are described elsewhere: `arcflow-serve` in [The server](../serve.md), and `arcflow-cli`, which takes
the options of `python -m runtime.generate`, in [C++ services](../native.md).
"""


@dataclass(frozen=True)
class Command:
    """A program that a user starts: ``words`` after ``python``, and the file that holds it."""

    words: tuple[str, ...]
    file: Path

    @property
    def name(self) -> str:
        """As a user types it: "python -m export.build"."""
        return " ".join(("python", *self.words))


def commands() -> Iterator[Command]:
    """Every program with a command line of its own, the modules of the packages first."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    files += [file for folder in PROGRAMS for file in sorted((ROOT / folder).glob("*.py"))]
    for file in files:
        text, path = file.read_text(encoding="utf-8"), file.relative_to(ROOT)
        if _GUARD in text and _PARSER in text:
            module = ".".join(part for part in path.with_suffix("").parts if part != "__main__")
            yield Command(("-m", module) if path.parts[0] in PACKAGES else (path.as_posix(),), file)


def help_of(command: Command) -> str:
    """What ``--help`` prints, 100 columns wide. Raises CalledProcessError where the command fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    words = [sys.executable, *command.words, "--help"]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


def reference() -> str:
    """The page: each command with its help, in Markdown."""
    found = list(commands())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        helps = list(pool.map(help_of, found))
    pairs = zip(found, helps, strict=True)
    sections = [f"## {command.name}\n\n```text\n{text.rstrip()}\n```\n" for command, text in pairs]
    return "\n".join([_HEAD, *sections])
