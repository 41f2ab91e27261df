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
from foundation.processes import hand_over

_EXAMPLES = """examples:
  python -m engines.verify engines/bundles/tiny-fp16-cpu
  python -m engines.verify tiny
  python -m engines.verify flux-fp8-sm120 --run
  python -m engines.verify flux-fp8-sm120 --run --against engines/bundles/flux-fp8-onnx
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Verify one bundle; prints a line a file, what could not be compared, what was run, and a final OK.

    Returns what the process that runs the plans does, where they are run. Raises BundleError.
    """
    parser = ArgumentParser(
        prog="python -m engines.verify",
        description="Check that a bundle is whole and unaltered: schema, paths, links, size and sha256 of every file.\n"
        "Plans must also have been built on this machine, with its TensorRT, for its GPU, from the ONNX beside them.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("bundle", metavar="PATH", help="a bundle's folder or its name, or the name of a model")
    parser.add_argument("--quiet", action="store_true", help="print no line a file")
    parser.add_argument(
        "--run", action="store_true", help="also run each plan once on this machine's GPU: are its values finite?"
    )
    parser.add_argument(
        "--against",
        metavar="ONNX",
        help="with --run: the bundle of ONNX networks that the plans were built from; they are held to it, as far as "
        "its networks are small enough to be run on this machine's CPU",
    )
    parser.add_argument(
        "--allow-links", action="store_true", help="files may be links, as in caches; what they lead to is checked"
    )
    arguments = parser.parse_args(argv)
    if arguments.against is not None and not arguments.run:
        parser.error("--against is for --run")
    if arguments.allow_links and arguments.run:
        parser.error("--allow-links is not for --run: copy the bundle with cp -rL and run the copy")
    bundle = open_bundle(_folder(arguments.bundle), allow_links=arguments.allow_links)
    findings = require_fresh(bundle)
    out = sys.stdout
    if not arguments.quiet:
        out.writelines(f"{entry.sha256}  {entry.size:>14,}  {entry.path}\n" for entry in bundle.manifest.files)
        out.write(f"{bundle.manifest.digest}  {'(itself)':>14}  {MANIFEST_NAME}\n")
        out.writelines(f"note: {note}\n" for note in findings.notes)
    if arguments.run:
        out.flush()
        against = () if arguments.against is None else ("--against", _folder(arguments.against))
        done = hand_over("export.parity" if against else "runtime.verify", bundle.root, *against)
        if done.returncode:
            return done.returncode
    out.write(f"OK {bundle.name}: {len(bundle.manifest.files)} files, {bundle.size:,} bytes\n")
    return 0


def _folder(given: str) -> Path:
    """The bundle that is named by its folder, its name, or its model's. Raises BundleNotFoundError."""
    path = Path(given)
    return path if is_folder(path) or len(path.parts) != 1 else find(given)


if __name__ == "__main__":
    sys.exit(run(main))
