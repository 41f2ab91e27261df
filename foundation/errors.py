"""The root of the errors that ArcFlow raises on purpose."""

from __future__ import annotations


class ArcFlowError(Exception):
    """A fault that the caller can mend: the message says what was wrong, what is allowed and what to do.

    Each package derives its own classes from this one. Command-line programs turn it into one line on
    standard error and exit code 2 (see :mod:`foundation.cli`); anything else that escapes is a bug.
    """
