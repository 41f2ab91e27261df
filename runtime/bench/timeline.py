"""An image of where the time goes: one bar a program, one colour a stage, drawn to one scale.

A program that takes many times as long as the first is cut off at the right, and its label says so: the image is of
the stages of the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Spans = Sequence[tuple[str, float, float]]
"""(stage, start, end) in seconds."""

_WIDTH, _LEFT, _RIGHT, _TOP, _BAR, _GAP = 1200, 160, 130, 46, 34, 26
_TEXT, _FAINT, _PAPER = "#1f2430", "#c9ced8", "#ffffff"
_OTHER = "#9aa3b2"
_COLOURS: Mapping[str, str] = {
    "tokenize": "#7f7f7f", "text": "#4c78a8", "noise": "#b5b5b5", "evaluation": "#f58518", "solver": "#54a24b",
    "vae": "#b279a2", "pipeline": "#e45756",
}  # fmt: skip
_CUT = 6.0
"""Programs that take more than so many times as long as the first do not set the scale."""


def draw(title: str, rows: Mapping[str, Spans]) -> Image:
    """The image of ``rows`` (name of a program -> its spans), with an axis in milliseconds and a legend."""
    from PIL import Image, ImageDraw, ImageFont

    height = _TOP + len(rows) * (_BAR + _GAP) + 84
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    canvas = ImageDraw.Draw(image)
    font, small = (ImageFont.load_default(size) for size in (18, 14))
    totals = [max((end for _, _, end in spans), default=0.0) for spans in rows.values()]
    longest = max((total for total in totals if total <= _CUT * totals[0]), default=0.0) or 1e-3
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    canvas.text((16, 12), title, fill=_TEXT, font=font)
    label: Any = {"fill": _TEXT, "font": small}
    bottom = _TOP + len(rows) * (_BAR + _GAP)
    _axis(canvas, longest, scale, bottom, label)
    for index, (name, spans) in enumerate(rows.items()):
        top = _TOP + index * (_BAR + _GAP) + 8
        canvas.text((16, top + 7), name, **label)
        for stage, start, end in spans:
            if start >= longest:
                continue
            end = min(end, longest)
            box = (_LEFT + start * scale, top, max(_LEFT + end * scale, _LEFT + start * scale + 1), top + _BAR)
            canvas.rectangle(box, fill=_colour(stage))
        total = totals[index]
        mark = "" if total <= longest else "... "
        canvas.text((_LEFT + min(total, longest) * scale + 8, top + 7), f"{mark}{total * 1e3:.1f} ms", **label)
    x = _LEFT
    for kind in dict.fromkeys(_kind(stage) for spans in rows.values() for stage, _, _ in spans):
        canvas.rectangle((x, bottom + 48, x + 14, bottom + 62), fill=_colour(kind))
        canvas.text((x + 20, bottom + 46), kind, **label)
        x += 40 + int(canvas.textlength(kind, font=small))
    return image


def _axis(canvas: ImageDraw, longest: float, scale: float, bottom: int, label: Mapping[str, Any]) -> None:
    step = _step(longest)
    count = int(longest / step)
    for index in range(count + 1):
        x = _LEFT + index * step * scale
        canvas.line((x, _TOP, x, bottom), fill=_FAINT)
        canvas.text((x - 6, bottom + 6), f"{index * step * 1e3:g}", **label)
    canvas.text((_WIDTH - _RIGHT + 30, bottom + 6), "ms", **label)


def _step(longest: float) -> float:
    """The distance of the axis' marks: the least of 1, 2, 5 times a power of ten that gives at most ten of them."""
    steps = (step * 10.0**power for power in itertools.count(-6) for step in (1, 2, 5))
    return next(step for step in steps if longest / step <= 10)


def _kind(stage: str) -> str:
    return stage.rstrip("0123456789 ")


def _colour(stage: str) -> str:
    return _COLOURS.get(_kind(stage), _OTHER)
