"""``python -m engines.verify PATH``: check a bundle, file by file, and that its plans are good on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engines.bundle import is_folder, open_bundle
from engines.locate import find
from engines.schema import MANIFEST_NAME
from engines.staleness import require_fresh
from foundation.cli import ArgumentParser, run

_EXAMPLES = """examples:
  python -m engines.verify engines/bundles/tiny-fp32-cpu
  python -m engines.verify tiny
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Verify one bundle; prints a line a file, what could not be compared, and a final OK. Raises BundleError."""
    parser = ArgumentParser(
        prog="python -m engines.verify",
        description="Check that a bundle is whole and unaltered: schema, paths, links, size and sha256 of every file.\n"
        "Plans must also have been built on this machine, with its TensorRT, for its GPU, from the ONNX beside them.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("bundle", metavar="PATH", help="a bundle's folder or its name, or the name of a model")
    parser.add_argument("--quiet", action="store_true", help="print the final line only")
    arguments = parser.parse_args(argv)
    given = Path(arguments.bundle)
    bundle = open_bundle(given if is_folder(given) or len(given.parts) != 1 else find(arguments.bundle))
    findings = require_fresh(bundle)
    out = sys.stdout
    if not arguments.quiet:
        out.writelines(f"{entry.sha256}  {entry.size:>14,}  {entry.path}\n" for entry in bundle.manifest.files)
        out.write(f"{bundle.manifest.digest}  {'(itself)':>14}  {MANIFEST_NAME}\n")
        out.writelines(f"note: {note}\n" for note in findings.notes)
    out.write(f"OK {bundle.name}: {len(bundle.manifest.files)} files, {bundle.size:,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
