"""What to run on a machine with a GPU: ``python gpu/run.py --part a,b,f --out figures.json``.

Each part runs in a process of its own with a time limit, and says what it measured as it goes: what a part had found
when it failed or ran out of time is kept. Prints the figures as they come, then a table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # In place of this folder.

from foundation.cli import ArgumentParser, run  # noqa: E402
from gpu.catalogue import LIMIT_SECONDS, PARTS, Options  # noqa: E402
from gpu.session import Session  # noqa: E402
from gpu.table import table  # noqa: E402

_EXAMPLES = """examples:
  python gpu/run.py --smoke                          every part at its smallest: does it all work?
  python gpu/run.py --part a,b,f --out figures.json
  python gpu/run.py --part e --modes eager,blocks
  python gpu/run.py --part g --train 300             train the tiny student for five minutes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python gpu/run.py", description="Measure on a GPU.", epilog=_EXAMPLES)
    add = parser.add_argument
    add("--list", action="store_true", help="show the parts and run nothing")
    add("--part", metavar="A,B", help=f"which, in this order (default: {','.join(PARTS)})")
    add("--out", type=Path, metavar="FILE", help="write all figures there as JSON, after every record")
    add("--smoke", action="store_true", help="smallest sizes and few runs; the figures mean nothing")
    add("--limit", type=int, default=LIMIT_SECONDS, metavar="S", help="seconds a part may run (default: %(default)s)")
    add("--modes", metavar="M,N", help="of part e: some of eager, blocks, cudnn, whole, autotune, fp8")
    add("--train", type=int, default=0, metavar="S", help="seconds that part g trains for (default: throughput only)")
    add("--bundle", type=Path, help="of part c: a bundle of plans that is already built here")
    add("--work", type=Path, default=Options.out, help="folder for what parts make (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.list:
        for part in PARTS.values():
            needs = f" [needs {', '.join(part.needs)}]" if part.needs else ""
            print(f"({part.letter}) {part.title}{needs}")
        return 0
    letters = (arguments.part or ",".join(PARTS)).split(",")
    unknown = [letter for letter in letters if letter not in PARTS]
    if unknown:
        parser.error(f"--part {','.join(unknown)} is unknown; allowed: {', '.join(PARTS)}")
    for name in ("limit", "train"):
        if getattr(arguments, name) < (name == "limit"):
            parser.error(f"--{name} must be positive")
    modes = tuple(arguments.modes.split(",")) if arguments.modes else None
    options = Options(arguments.smoke, modes, arguments.train, arguments.bundle, arguments.work)
    session = Session(ROOT, options, arguments.limit, arguments.out)
    for letter in letters:
        session.do(PARTS[letter])
    print()
    print(table(session.parts))
    return 1 if any(part["state"] == "failed" for part in session.parts.values()) else 0


if __name__ == "__main__":
    sys.exit(run(main))
