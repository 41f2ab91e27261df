"""How every command of ArcFlow ends: one clear line and exit code 2 for what the user can mend."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from foundation.errors import ArcFlowError

USAGE_ERROR = 2
INTERRUPTED = 130
CLOSED_PIPE = 141


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line (no usage dump) and whose examples keep their lines."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run ``command(argv)`` and return its exit code.

    An :class:`ArcFlowError` becomes ``error: <message>`` on standard error and exit code 2, and so does a full disk,
    which standard output may lie on; Ctrl-C becomes exit code 130, and a reader that has closed the pipe (``| head``)
    ends the command in silence with 141, as SIGPIPE would. Other exceptions pass: they are bugs and deserve their
    traceback.
    """
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except ArcFlowError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        _discard_output()
        return CLOSED_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        with contextlib.suppress(OSError, ValueError):
            _discard_output()
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _discard_output() -> None:
    """What standard output still holds goes nowhere, so that Python does not try it again at its end and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
