"""How every command of ArcFlow ends: one clear line and exit code 2 for what the user can mend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from foundation.errors import ArcFlowError

USAGE_ERROR = 2
INTERRUPTED = 130


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line (no usage dump) and whose examples keep their lines."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run ``command(argv)`` and return its exit code.

    An :class:`ArcFlowError` becomes ``error: <message>`` on standard error and exit code 2;
    Ctrl-C becomes exit code 130. Other exceptions pass: they are bugs and deserve their traceback.
    """
    try:
        return command(argv)
    except ArcFlowError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
