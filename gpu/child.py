"""``python -m gpu.child JSON``: runs one part in this process. Started by gpu/run.py."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from gpu.card import watched
from gpu.catalogue import Options, Part, missing
from gpu.records import Printer, guarded


def main(part: Part, options: Options) -> int:
    """Run the part; 0 where nothing failed."""
    lacking = missing(part)
    if lacking:
        Printer(part.name).line("skipped", what=part.title, show=f"needs {', '.join(lacking)}, not installed here")
        return 0
    with watched() as card:
        printer = Printer(part.name, card)
        return 0 if guarded(printer, part.title, lambda: import_module(part.module).run(printer, options)) else 1


def encode(part: Part, options: Options) -> str:
    """Both as one argument."""
    return json.dumps({"part": asdict(part), "options": asdict(options)}, default=str)


def decode(text: str) -> tuple[Part, Options]:
    """The reverse of :func:`encode`."""
    read = json.loads(text)
    part, given = read["part"], read["options"]
    part.update({name: tuple(part[name]) for name in ("needs", "modes", "usual")})
    given["modes"] = None if given["modes"] is None else tuple(given["modes"])
    given["bundle"] = None if given["bundle"] is None else Path(given["bundle"])
    return Part(**part), Options(**(given | {"out": Path(given["out"])}))


if __name__ == "__main__":
    sys.exit(main(*decode(sys.argv[1])))
