"""What ``runtime.bench`` shows of a result: the rows of its table, and those of the timeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foundation.measuring import shown, table
from runtime.bench.measure import Passage


def text(result: Mapping[str, Any]) -> str:
    """Ours stage by stage, then the baselines, then the roofline."""
    limits = table(_roofline(result["roofline"] or ()), right={1, 2, 3, 5})
    return "\n".join(filter(None, [table(_rows(result), right={1, 2}), limits]))


def _rows(result: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    total = result["total"]
    yield (f"{_title(result)}, {total['samples']} runs",)
    yield (f"on {'; '.join(part for part in (result['device'], result['backend']) if part)}",)
    yield ("", "median", "p99")
    timings = {**result["stages"], "total": total}
    if result["idle"]:
        timings["idle, evaluations"] = result["idle"]
    yield from ((name, _ms(each["median_s"]), _ms(each["p99_s"])) for name, each in timings.items())
    yield ("bundle opened", _ms(result["open_s"]))
    yield from ((f"peak memory, {kind}", f"{size >> 20} MiB") for kind, size in result["peak_bytes"].items())
    if result["gpu_bytes"]:
        yield ("  of which, MiB: " + ", ".join(f"{kind} {size >> 20}" for kind, size in result["gpu_bytes"].items()),)
    ours = total["median_s"] / result["images"]
    for other in result["baselines"]:
        note = f"{other['total_s'] / ours:.1f} x ours an image, {other['dtype']}, {other['peak_bytes'] >> 20} MiB"
        yield f"{other['what']}, {other['mode']}", _ms(other["total_s"]), _ms(other["total_p99_s"]), note
    yield (f"machine: {shown(result['machine'])}",)


def programs(result: Mapping[str, Any], timeline: Sequence[Passage]) -> dict[str, list[Passage]]:
    """The rows of the image: ours as it ran, the baselines from their medians, laid end to end."""
    found = {"ArcFlow": list(timeline)}
    for other in result["baselines"]:
        start, spans = 0.0, []
        for stage, seconds in other["stages_s"].items():
            spans.append((stage, start, start + seconds))
            start += seconds
        found[f"{other['what']}, {other['mode']}"] = spans
    return found


def title(result: Mapping[str, Any]) -> str:
    """What the image is of."""
    return f"{_title(result)}: the median run on {result['device']}"


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['bundle']}: {result['images']} x {result['width']}x{result['height']} px"


def _roofline(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    if not rows:
        return
    yield "roofline", "GFLOP", "weights", "limit", "bound", "share"
    for row in rows:
        weights, limit = f"{row['weight_bytes'] / 1e6:.1f} MB", row["limit_s"]
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        fast = f"{limit * 1e6:.2f} us" if limit < 1e-4 else _ms(limit)
        yield f"  {row['network']}", f"{row['operations'] / 1e9:.3f}", weights, fast, row["bound"], share
    yield (f"  ({rows[0]['peak']})",)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"
