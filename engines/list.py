"""``python -m engines.list``: the bundles that can be found, and whether each is whole and good on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.bundle import open_bundle
from engines.errors import BundleError, TrustError
from engines.locate import ENVIRONMENT, BundleName, available
from engines.memory.card import CardMemory, of_bundle
from engines.schema import Limits, Range
from engines.staleness import compare
from foundation.cli import ArgumentParser, run

_EXAMPLES = f"""examples:
  python -m engines.list
  python -m engines.list --quick --json
  {ENVIRONMENT}=~/bundles python -m engines.list

Bundles are looked for in the folders of ${ENVIRONMENT}, then in the package's own. status:
  verified  every byte is what the manifest says, and plans fit this machine
  listed    (--quick) the same, but sizes and digests were not looked at
  stale     whole, but the plans do not fit this machine or their source
  damaged   not what its manifest says

Under a bundle for GPUs: what it takes of a card's memory, and the smallest common card (of 12, 16, 24, 32, 48 or 80 GB)
that has room for it. Sizes are in GB of 10^9 bytes; a card of 12 GB has 12 x 2^30, which a desktop shares.
"""
_COLUMNS = ("name", "architecture", "precision", "target", "size", "engine", "limits", "status", "path")


Row = dict[str, Any]
"""A bundle that was found, by column; ``why``: what is stale or damaged, or ""; ``memory``: what it takes of a GPU
(:class:`engines.memory.card.CardMemory`), None where it is for none or damaged."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or a JSON array of objects. Returns 0, whatever the bundles are like."""
    parser = ArgumentParser(
        prog="python -m engines.list", description="List the bundles that can be found.", epilog=_EXAMPLES
    )
    parser.add_argument("--quick", action="store_true", help="do not read the files: their digests stay unchecked")
    parser.add_argument("--json", action="store_true", help="print a JSON array instead of a table")
    arguments = parser.parse_args(argv)
    rows = [describe(name, path, arguments.quick) for name, path in sorted(available().items())]
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2, default=CardMemory.summary) + "\n")
    else:
        sys.stdout.writelines(_table(rows) or ["no bundles; to make one, run: python -m export.build\n"])
    return 0


def describe(name: BundleName, path: Path, quick: bool = False) -> Row:
    """What the list says of the bundle in the folder ``path``, called ``name``."""
    row: Row = {"name": str(name), "architecture": "", "precision": name.precision, "target": name.target, "size": 0}
    row |= {"engine": "", "limits": "", "status": "damaged", "why": "", "path": str(path), "memory": None}
    try:
        bundle = open_bundle(path, contents="when used" if quick else "now")
        memory = of_bundle(bundle.manifest)
    except BundleError as error:
        return {**row, "why": str(error)}
    try:
        differences = compare(bundle).differences
    except TrustError as error:  # The machine's key is not fit for use: nothing can be told of any plan.
        differences = (str(error),)
    manifest, engine = bundle.manifest, bundle.manifest.engine
    row |= {"architecture": manifest.architecture, "precision": manifest.precision, "target": manifest.target}
    row |= {"size": bundle.size, "limits": _limits(manifest.limits), "memory": memory}
    row["engine"] = "" if engine is None else f"{engine.flavour} {engine.version}"
    if bundle.name != name:
        return {**row, "why": f"it holds {bundle.name}: rename the folder"}
    status = "stale" if differences else "listed" if quick else "verified"
    return {**row, "status": status, "why": "; ".join(differences)}


def _limits(limits: Limits) -> str:
    size = f"{_span(limits.width)} x {_span(limits.height)} px"
    return f"{size}, batch {_span(limits.batch)}, text {_span(limits.text_tokens)}"


def _span(limit: Range) -> str:
    return str(limit.min) if limit.min == limit.max else f"{limit.min}-{limit.max}"


def _table(rows: Sequence[Row]) -> list[str]:
    """Lines with the columns aligned, and under a row what is wrong with it and what it takes of a GPU."""
    if not rows:
        return []
    shown = ({**row, "size": f"{int(row['size']) / 1e6:,.1f} MB"} for row in rows)
    cells = [list(_COLUMNS), *([str(row[key]) for key in _COLUMNS] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line, row in zip(cells, [None, *rows], strict=True):
        lines.append("  ".join(map(str.ljust, line, widths)).rstrip() + "\n")
        if row is not None:
            below = [row["why"]] if row["why"] else []
            below += [] if row["memory"] is None else row["memory"].lines()
            lines += [f"    {text}\n" for text in below]
    return lines


if __name__ == "__main__":
    sys.exit(run(main))
