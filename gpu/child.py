"""``python -m gpu.child LETTER OPTIONS``: runs one part in this process. Started by gpu/run.py."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from gpu.catalogue import PARTS, Options, missing
from gpu.records import Printer, guarded


def main(letter: str, options: Options) -> int:
    """Run the part; 0 where nothing failed."""
    part, printer = PARTS[letter], Printer(letter)
    lacking = missing(part)
    if lacking:
        printer.line("skipped", what=part.title, show=f"needs {', '.join(lacking)}, not installed here")
        return 0
    return 0 if guarded(printer, part.title, lambda: import_module(part.module).run(printer, options)) else 1


def encode(options: Options) -> list[str]:
    """The options as arguments."""
    bundle = "" if options.bundle is None else str(options.bundle)
    modes = "" if options.modes is None else ",".join(options.modes)
    return [str(int(options.smoke)), modes, str(options.train_seconds), bundle, str(options.out)]


def decode(arguments: list[str]) -> Options:
    """The reverse of :func:`encode`."""
    smoke, modes, train, bundle, out = arguments
    return Options(
        smoke == "1",
        tuple(modes.split(",")) if modes else None,
        int(train),
        Path(bundle) if bundle else None,
        Path(out),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], decode(sys.argv[2:])))
