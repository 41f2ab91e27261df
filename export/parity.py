"""``python -m export.parity PLANS --against ONNX``: plans on this machine's GPU, held to the ONNX they are from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.bundle import open_bundle
from engines.staleness import onnx_digests, require_fresh
from export.errors import EngineError
from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from engines.bundle import Bundle

_EXAMPLES = """examples:
  python -m export.parity engines/bundles/flux-fp8-sm120 --against engines/bundles/flux-fp8-onnx
  python -m engines.verify flux-fp8-sm120 --run --against flux-fp8-onnx
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plans and compare; prints a line a plan. Raises NotRunError, ParityError, BundleError, EngineError."""
    parser = ArgumentParser(
        prog="python -m export.parity",
        description="Run each plan of a bundle once on this machine's GPU, and hold it to the ONNX network that it\n"
        "was built from, in ONNX Runtime's CPU. Of a network that is too large for that it is only seen whether its\n"
        "plan runs and gives finite values.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("bundle", type=Path, metavar="PLANS", help="folder of a bundle of plans")
    parser.add_argument(
        "--against", type=Path, metavar="ONNX", required=True, help="folder of the bundle that they were built from"
    )
    arguments = parser.parse_args(argv)
    plans, source = open_bundle(arguments.bundle), open_bundle(arguments.against)
    _check(plans, source)
    from export.assembling.device_parity import cases_of_bundle, measure
    from export.assembling.parity import shape_text
    from export.reporting import silent

    entries = {entry.path: entry for entry in plans.manifest.files}
    files = {name: (plans.root, entries[network.file]) for name, network in plans.manifest.networks.items()}
    cases = cases_of_bundle(source, plans.manifest, files)
    found = {result.network: result for result in measure(plans.manifest, cases, silent, source.root)}
    for name in files:
        if (one := found.get(name)) is None:
            sys.stdout.write(f"{name}: finite; too large to be compared with its ONNX on this machine's CPU\n")
        else:
            figures = f"error {one.relative_error:.1e} of {one.limit:.0e} (relative L2) at {shape_text(one)}"
            sys.stdout.write(f"{name}: {figures} on {one.device}\n")
    return 0


def _check(plans: Bundle, source: Bundle) -> None:
    """Raise unless the plans are good here and were built from ``source``."""
    engine = plans.manifest.engine
    if engine is None or source.manifest.engine is not None:
        raise EngineError(
            f"{plans.root} must hold plans, and {source.root} the ONNX networks that they were built from"
        )
    require_fresh(plans)
    digests = onnx_digests(source.manifest)
    if others := [name for name, digest in engine.onnx.items() if digests.get(name) != digest]:
        raise EngineError(
            f"{plans.root} was not built from {source.root}, which has another {', '.join(others)}: give the bundle "
            "that export.engine was given, or that the same build makes for --target onnx"
        )


if __name__ == "__main__":
    sys.exit(run(main))
