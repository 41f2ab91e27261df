"""A report of figures as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundation.measuring import table

_HEADS = {
    "rel_l2": ("rel. L2", ".4f"),
    "frechet": ("Frechet", ".2f"),
    "psnr_db": ("PSNR dB", ".2f"),
    "feature_distance": ("features", ".4f"),
    "accuracy": ("accuracy", ".3f"),
    "diversity": ("diversity", ".3f"),
    "seconds": ("seconds", ".3g"),
}
"""Figures in their order, with heading and format."""


def figures_table(report: Mapping[str, Any]) -> str:
    """One row a sampler and number of evaluations; figures that no sampler has are left out."""
    samplers = [
        (kind, nfe, row)
        for kind in ("student", "linear", "teacher")
        for nfe, row in sorted(report.get(kind, {}).items(), key=lambda item: int(item[0]))
    ]
    heads = {key: head for key, head in _HEADS.items() if any(row.get(key) is not None for *_, row in samplers)}

    def cell(row: Mapping[str, Any], key: str) -> str:
        return "" if row.get(key) is None else format(row[key], heads[key][1])

    lines = [(kind, nfe, *(cell(row, key) for key in heads)) for kind, nfe, row in samplers]
    head = ("sampler", "NFE", *(name for name, _ in heads.values()))
    return table([head, *lines], right=range(1, len(head)))
