"""The report of built plans as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from export.tensorrt.build import PlanReport
from export.tensorrt.report import NETWORK

if TYPE_CHECKING:
    from rich.table import Table

_ORDER = ("float8", "float16", "bfloat16", "float32")


def report_table(reports: Sequence[PlanReport]) -> Table:
    """One row a plan: size, time, layers by precision, and how many

    - of the weights' matrix products are in FP8 (with the part of the weights' elements that is),
    - of the attention layers are one kernel for certain.
    """
    from rich.table import Table

    sources = sorted({report.layers.source for report in reports})
    caption = f"layers counted by: {', '.join(sources)}"
    if NETWORK in sources:
        caption += " (no GPU here opens these plans: what the builder fused is not seen)"
    table = Table(title="plans", caption=caption)
    for heading in ("plan", "MB", "seconds", "layers by type", "weights in FP8", "one-kernel attention", "warnings"):
        table.add_column(heading, justify="left" if heading in ("plan", "layers by type") else "right")
    for report in reports:
        layers = report.layers
        gemms = layers.gemms
        table.add_row(
            report.network,
            f"{report.size / 1e6:,.1f}",
            f"{report.seconds:,.1f}",
            " ".join(f"{name} {layers.precisions[name]}" for name in _ORDER if name in layers.precisions),
            f"{gemms.fp8}/{gemms.count} ({gemms.fp8_share:.1%})",
            f"{layers.attention_fused}/{layers.attention}",
            str(report.warnings),
        )
    return table
