"""The short table at the end: one line a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDTH = 58
_MARKS = {True: "yes", False: "NO", None: ""}


def table(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Part, what was measured, the figure, whether its aim was held; skipped and failed pieces are named as such."""
    rows = [("", "what", "held", "figure")]
    for name, part in parts.items():
        for record in part["records"]:
            kind = record["kind"]
            mark = _MARKS[record.get("held")] if kind == "measured" else kind
            rows.append((name, _cut(str(record.get("what", ""))), mark, str(record.get("show", ""))))
        rows.append((name, f"({part['state']} in {part['seconds']:.0f} s)", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join((*map(str.ljust, row[:3], widths), row[3])).rstrip() for row in rows)


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
