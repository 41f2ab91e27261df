"""``python -m runtime.verify BUNDLE``: run each plan of a bundle once on this machine's GPU.

``python -m engines.verify BUNDLE --run`` is the way to it, which checks the bundle first. ``export`` asks in a folder
of trials (:mod:`engines.trials`) what plans give that it has just built, and is answered on standard output.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from foundation.cli import ArgumentParser, run

_EXAMPLES = """examples:
  python -m runtime.verify engines/bundles/flux-fp8-sm120
  python -m engines.verify flux-fp8-sm120 --run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plans; prints a line a plan. Raises ArcFlowError, a BackendError for values that are not finite."""
    parser = ArgumentParser(
        prog="python -m runtime.verify",
        description="Run each plan of a bundle once on this machine's GPU, at its usual shapes and on random inputs:\n"
        "whether it loads, runs, and gives finite values.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="a bundle's folder, or what export asks in one")
    arguments = parser.parse_args(argv)
    import msgspec

    from engines.trials import Answer, is_asked
    from runtime.cuda.trials import open_bundle_trials, open_trials
    from runtime.errors import BackendError

    if is_asked(arguments.folder):
        with closing(open_trials(arguments.folder)) as trials:
            answer = Answer(trials.device.info.name, list(trials.run()))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        return 0
    faults = []
    with closing(open_bundle_trials(arguments.folder)) as trials:
        sys.stdout.write(f"on {trials.backend}:\n")
        for ran in trials.run():
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in ran.shapes.items())
            sys.stdout.write(f"{ran.name}: {'NOT FINITE' if ran.nonfinite else 'finite'}, of {shapes}\n")
            sys.stdout.flush()
            faults += [ran.fault] if ran.fault else []
    if faults:
        raise BackendError(f"{'; '.join(faults)}: build them again, in bf16 where this is fp16")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
