"""``python -m engines.verify PATH``: check a bundle, file by file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engines.bundle import is_folder, open_bundle
from engines.locate import locate
from engines.manifest import MANIFEST_NAME
from foundation.cli import ArgumentParser, run

_EXAMPLES = """examples:
  python -m engines.verify engines/bundles/tiny-fp32-cpu
  python -m engines.verify tiny
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Verify one bundle; prints a line a file and a final OK. Returns 0; raises BundleError."""
    parser = ArgumentParser(
        prog="python -m engines.verify",
        description="Check that a bundle is whole and unaltered: schema, paths, links, size and sha256 of every file.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("bundle", metavar="PATH", help="a bundle's folder, or the name of a model")
    parser.add_argument("--quiet", action="store_true", help="print the final line only")
    arguments = parser.parse_args(argv)
    given = Path(arguments.bundle)
    bundle = open_bundle(given if is_folder(given) or len(given.parts) != 1 else locate(arguments.bundle))
    out = sys.stdout
    if not arguments.quiet:
        out.writelines(f"{entry.sha256}  {entry.size:>12,}  {entry.path}\n" for entry in bundle.manifest.files)
        out.write(f"{bundle.manifest.digest}  {'(itself)':>12}  {MANIFEST_NAME}\n")
    total = sum(entry.size for entry in bundle.manifest.files)
    out.write(f"OK {bundle.name}: {len(bundle.manifest.files)} files, {total:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
