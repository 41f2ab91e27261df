"""What ``runtime.bench`` shows of a result: the table, and the rows of the timeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.bench.measure import Passage


def table(result: Mapping[str, Any]) -> str:
    """Ours stage by stage, then the baselines, then the roofline."""
    head = f"{result['bundle']}: {result['images']} x {result['width']}x{result['height']} px, {result['runs']} runs"
    place = "; ".join(part for part in (result["device"], result["backend"]) if part)
    lines = [head, f"on {place}", f"{'':<22}{'median':>11}{'p99':>11}"]
    stages = [*result["stages_s"], result["total_s"], *([result["idle_s"]] if result["idle_s"] else [])]
    lines += [f"{stage['name']:<22}{_ms(stage['median']):>11}{_ms(stage['p99']):>11}" for stage in stages]
    lines += [
        f"{f'peak memory, {kind}':<22}{size / (1 << 20):>7.0f} MiB" for kind, size in result["peak_bytes"].items()
    ]
    if result["gpu_bytes"]:
        parts = ", ".join(f"{kind} {size / (1 << 20):.0f}" for kind, size in result["gpu_bytes"].items())
        lines.append(f"{'  of which, MiB':<22}{parts}")
    ours = result["total_s"]["median"] / result["images"]
    for other in result["baselines"]:
        name = f"{other['what']}, {other['mode']}"
        lines.append(
            f"{name:<22}{_ms(other['total_s']):>11}{_ms(other['total_p99_s']):>11}  "
            f"{other['total_s'] / ours:.1f} x ours an image, {other['dtype']}, {other['peak_bytes'] >> 20} MiB"
        )
    return "\n".join([*lines, *_roofline(result["roofline"] or ())])


def programs(result: Mapping[str, Any], timeline: tuple[Passage, ...]) -> dict[str, list[Passage]]:
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
    images, size = result["images"], f"{result['width']}x{result['height']} px"
    many = "s" if images > 1 else ""
    return f"{result['bundle']}, {size}, {images} image{many}: the median run on {result['device']}"


def _roofline(rows: Any) -> list[str]:
    if not rows:
        return []
    lines = [f"{'roofline':<22}{'GFLOP':>11}{'weights':>11}{'limit':>11}  bound    share"]
    for row in rows:
        share = "" if row["share"] is None else f"{row['share']:.1%}"
        lines.append(
            f"{'  ' + row['network']:<22}{row['operations'] / 1e9:>11.3f}{row['weight_bytes'] / 1e6:>8.1f} MB"
            f"{_short(row['limit_s']):>11}  {row['bound']:<8} {share}"
        )
    return [*lines, f"  ({rows[0]['peak']})"]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _short(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us" if seconds < 1e-4 else _ms(seconds)
