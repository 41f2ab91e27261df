"""``python -m gpu.child TEXT``: runs one part in this process. Started by gpu/run.py."""

from __future__ import annotations

import pickle
import sys
from importlib import import_module

from gpu.card import watched
from gpu.catalogue import Options, Part, missing
from gpu.records import Printer, guarded


def main(part: Part, options: Options) -> int:
    """Run the part; 0 where nothing failed."""
    if lacking := missing(part):
        Printer(part.name).line("skipped", what=part.title, show=f"needs {', '.join(lacking)}, not installed here")
        return 0
    with watched() as card:
        printer = Printer(part.name, card)
        return 0 if guarded(printer, part.title, lambda: import_module(part.module).run(printer, options)) else 1


def encode(part: Part, options: Options) -> str:
    """Both as one argument."""
    return pickle.dumps((part, options)).hex()


if __name__ == "__main__":
    sys.exit(main(*pickle.loads(bytes.fromhex(sys.argv[1]))))
