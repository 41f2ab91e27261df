"""What to run on a machine with a GPU: ``python gpu/run.py --part machine,solver --out figures.json``.

Each part runs in a process of its own with a time limit, and says what it measured as it goes: what a part had found
when it failed or ran out of time is kept. Prints the figures as they come, then a table.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # In place of this folder.

from foundation.cli import ArgumentParser, run
from foundation.measuring import begin, shown, table
from gpu.catalogue import PARTS, Options
from gpu.session import Session

_EXAMPLES = """examples:
  python gpu/run.py --smoke                          every part at its smallest: does it all work?
  python gpu/run.py --part machine,solver,graphs --out figures.json
  python gpu/run.py --part flux --modes eager,fp8
  python gpu/run.py --part distil --train 300        train the tiny student for five minutes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python gpu/run.py", description="Measure on a GPU.", epilog=_EXAMPLES)
    add = parser.add_argument
    modes = PARTS["flux"].modes
    add("--list", action="store_true", help="show the parts and run nothing")
    add("--part", metavar="A,B", help=f"which, in this order (default: {','.join(PARTS)})")
    add("--out", type=Path, metavar="FILE", help="write all figures there as JSON, after every record")
    add("--smoke", action="store_true", help="smallest sizes and few runs; the figures mean nothing")
    add("--rehearse", action="store_true", help="the same on a CPU where torch has no GPU, smaller still")
    add("--limit", type=int, metavar="S", help="seconds a part, or a mode of it, may run (default: each its own)")
    add("--total", type=int, metavar="S", help="seconds for all of them: what does not fit any more is left out")
    add("--modes", metavar="M,N", help=f"of flux: some of {', '.join(modes)}")
    add("--train", type=int, default=0, metavar="S", help="seconds that distil trains for (default: throughput only)")
    add("--bundle", type=Path, help="of plans: a bundle of plans that is already built here")
    add("--work", type=Path, default=Options.out, help="folder for what parts make (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.list:
        for part in PARTS.values():
            needs = f" [needs {', '.join(part.needs)}]" if part.needs else ""
            print(f"{part.name}: {part.title}{needs}")
        return 0
    names = (arguments.part or ",".join(PARTS)).split(",")
    chosen = tuple(arguments.modes.split(",")) if arguments.modes else None
    for option, given, known in (("part", names, list(PARTS)), ("modes", chosen or (), modes)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"--{option} {','.join(unknown)} is unknown; allowed: {', '.join(known)}")
    for option in ("limit", "total", "train"):
        value = getattr(arguments, option)
        if value is not None and value < (option != "train"):
            parser.error(f"--{option} must be positive")
    rehearse = arguments.rehearse
    options = Options(
        arguments.smoke or rehearse, rehearse, chosen, arguments.train, arguments.bundle, arguments.work.resolve()
    )
    begun = begin(parser.prog, argv)
    print(shown(begun["machine"]), flush=True)
    session = Session(ROOT, options, arguments.out, arguments.limit, arguments.total, begun)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Parts are ended, and the table is printed.
    try:
        for name in names:
            session.do(PARTS[name])
    finally:
        print(f"\n{table(session.rows())}", flush=True)
    return 1 if any(part["state"] == "failed" for part in session.parts.values()) else 0


if __name__ == "__main__":
    sys.exit(run(main))
