"""A calibration of nominal scales for a synthetic student: ``python -m benchmarks.fullsize.nominal DIR OUT``.

It is marked synthetic: the same bound for every linear, of no meaning for images, but of the true size and keyed by
the digest of the student that DIR/base and DIR/adapter make, as the build asks for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from export.fp8.calibration import Calibration


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file. Raises ArcFlowError."""
    from export.fp8.calibration import write_calibration

    parser = ArgumentParser(prog="python -m benchmarks.fullsize.nominal", description="Write nominal FP8 scales.")
    parser.add_argument("folder", type=Path, help="has base and adapter")
    parser.add_argument("out", type=Path, help="the calibration file to write")
    arguments = parser.parse_args(argv)
    write_calibration(nominal_calibration(arguments.folder / "base", arguments.folder / "adapter"), arguments.out)
    return 0


def nominal_calibration(base: Path, adapter: Path) -> Calibration:
    """The calibration of the student that the adapter makes of ``base``/transformer. Raises ArcFlowError.

    Reads all of both to digest them.
    """
    from export.fp8.calibration import nominal
    from export.fp8.policy import layer_of
    from export.weights.merge import merged_student, plan_merge
    from foundation.files import sha256_tree

    plan = plan_merge(base / "transformer", adapter)
    student = merged_student(plan, sha256_tree(base / "transformer"), sha256_tree(adapter))
    linears = (name for name, info in student.weights.items() if name.endswith(".weight") and len(info.shape) == 2)
    return nominal(map(layer_of, linears), student.digest)


if __name__ == "__main__":
    sys.exit(run(main))
