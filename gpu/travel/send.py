"""``python -m gpu.travel.send --out .work/gpu``: what to send to the machine with a GPU, and what to run there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("models", "engines/bundles")
"""What the first command keeps on that machine for the second."""

_TEXT = """
1. Send the repository and {first} ({first_mb:.1f} MB together). In the repository's root there:

     sh gpu/travel/on_gpu.sh first {first} "${{OUT:-out/gpu}}"

   It keeps models and bundles in a folder outside the repository, for the second.

2. Send the repository without {kept}, and {second} ({second_mb:.1f} MB together). Before that, here:

     mkdir -p {out}/aside && mv {kept_paths} {out}/aside/

   In the repository's root there, while that machine is still the same:

     sh gpu/travel/on_gpu.sh second {second} "${{OUT:-out/gpu}}"

   Afterwards, here:

     mv {out}/aside/models . && mv {out}/aside/bundles engines/

Each ends within seven minutes. Figures are in first.json and second.json, written after every record."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the commands. Raises ArcFlowError where it is more than may travel."""
    parser = ArgumentParser(prog="python -m gpu.travel.send", description="Say what to send, and what to run there.")
    parser.add_argument("--out", type=Path, required=True, help="what gpu/prepare.sh made")
    parser.add_argument("--limit", type=float, default=60.0, metavar="MB", help="of one command (default: %(default)s)")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    tree, kept = tree_bytes(ROOT), sum(size_of(ROOT / name) for name in KEPT)
    first, second = (size_of(out / name) for name in ("first", "second"))
    for name, size in (("first", tree + first), ("second", tree - kept + second)):
        if size / 1e6 > arguments.limit:
            raise ArcFlowError(
                f"the {name} command would send {size / 1e6:.1f} MB, and {arguments.limit:.0f} MB may travel at once: "
                "see LIMIT_MB in gpu/prepare.sh, and what lies in the repository and is not ignored"
            )
    print(
        _TEXT.format(
            first=out / "first",
            second=out / "second",
            out=out,
            kept=" and ".join(f"{name}/" for name in KEPT),
            kept_paths=" ".join(KEPT),
            first_mb=(tree + first) / 1e6,
            second_mb=(tree - kept + second) / 1e6,
        )
    )
    return 0


def tree_bytes(root: Path) -> int:
    """Bytes of the repository's files, tracked ones and new ones that are not ignored. Raises ArcFlowError."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ArcFlowError(f"git cannot list the repository's files: {done.stderr.decode().strip()}")
    paths = {root / name.decode() for name in done.stdout.split(b"\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(run(main))
