"""Figures of a study: convergence, heads, gammas, bands, and a strip of images a head."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcflow.studying import variants as names
from arcflow.studying.claims import Runs
from arcflow.studying.ledger import Record
from arcflow.studying.measuring import GAMMA_EDGES, TEACHER
from arcflow.studying.tables import mean_bands
from foundation.files import atomic_file

_DPI = 100
_QUALITY = 80
"""Of WebP, for strips."""
_SIDE = 64
"""Pixels of an image in a strip, at least."""


def draw(runs: Runs, teacher: Record, nfe: int, strips: Mapping[str, Path], folder: Path) -> list[Path]:
    """Write all figures of which there are records, and return their paths. Raises ArcFlowError.

    nfe: the recipe's evaluations; strips: the file of first images, by variant or "teacher".
    """
    found = [_convergence(runs, folder / "convergence.png")] if runs else []
    if runs:
        found += [_heads(runs, teacher, folder / "heads.png"), _bands(runs, folder / "bands.png")]
    with_gammas = {name: records for name, records in runs.items() if records[0].gammas and _is_head(name)}
    if with_gammas:
        found.append(_gammas(with_gammas, folder / "gammas.png"))
    if strips:
        found.append(_strip(strips, nfe, folder / "strip.webp"))
    return found


def _is_head(name: str) -> bool:
    heads = (names.OWN, names.WIDE, names.LINEAR, names.PIECEWISE, names.MIDPOINT, names.MIXTURE)
    return name in heads or name.startswith(f"{names.OWN}-")


def _convergence(runs: Runs, path: Path) -> Path:
    """The error on noises that are looked at, against iterations and against seconds of one core."""
    figure, (left, right) = _figure(2, (10.0, 4.0))
    for number, (name, records) in enumerate(runs.items()):
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "lw": 1.2}
        points = list(zip(*(record.curve for record in records), strict=False))
        errors = [statistics.fmean(point[2] for point in row) for row in points]
        left.plot([row[0][0] for row in points], errors, label=name, **style)
        right.plot([statistics.fmean(point[1] for point in row) for row in points], errors, **style)
    for place, label in ((left, "iterations"), (right, "seconds of one core")):
        place.set_xlabel(label)
    left.set_ylabel("relative L2 to the teacher")
    left.legend(fontsize=7, ncols=2)
    return _save(figure, path)


def _heads(runs: Runs, teacher: Record, path: Path) -> Path:
    """Relative L2 of each head by number of evaluations, a bar a count, with the seeds' spread."""
    heads = {name: records for name, records in runs.items() if _is_head(name)} or dict(runs)
    counts = sorted(next(iter(heads.values()))[0].few, key=int)
    figure, (place,) = _figure(1, (8.0, 3.6))
    width = 0.8 / len(counts)
    for number, count in enumerate(counts):
        values = [[record.few[count].rel_l2 for record in records] for records in heads.values()]
        at = [row + (number - (len(counts) - 1) / 2) * width for row in range(len(heads))]
        spread = [statistics.stdev(row) if len(row) > 1 else 0.0 for row in values]
        place.bar(at, [statistics.fmean(row) for row in values], width, yerr=spread, label=f"{count} NFE", capsize=2)
        if count in teacher.few:
            label = f"teacher, {count} steps"
            place.axhline(teacher.few[count].rel_l2, color=f"C{number}", linestyle=":", lw=1.0, label=label)
    place.set_xticks(range(len(heads)), list(heads), rotation=20, ha="right", fontsize=8)
    place.set_ylabel("relative L2 to the teacher")
    place.legend(fontsize=7, ncols=2)
    return _save(figure, path)


def _bands(runs: Runs, path: Path) -> Path:
    """Where in sigma the error comes from."""
    figure, (place,) = _figure(1, (7.0, 3.6))
    for name, records in runs.items():
        if _is_head(name):
            found = mean_bands(records)
            place.plot([(upper + lower) / 2 for upper, lower, _ in found], [one[2] for one in found], ".-", label=name)
    place.invert_xaxis()
    place.set_xlabel("noise level sigma")
    place.set_ylabel("relative L2 of the band's displacement")
    if place.lines:
        place.legend(fontsize=7)
    return _save(figure, path)


def _gammas(runs: Runs, path: Path) -> Path:
    """The gates' weight by log gamma, a panel a segment."""
    segments = max(len(records[0].gammas) for records in runs.values())
    figure, places = _figure(segments, (4.5 * segments, 3.2))
    for name, records in runs.items():
        for number, place in enumerate(places):
            weights = np.mean([record.gammas[number] for record in records], axis=0)
            place.stairs(weights, GAMMA_EDGES, label=name, lw=1.3)
    for number, place in enumerate(places):
        place.set_title(f"segment {number + 1}", fontsize=9)
        place.set_xlabel("log gamma")
    places[0].set_ylabel("weight of the gates")
    places[0].legend(fontsize=7)
    return _save(figure, path)


def _strip(files: Mapping[str, Path], nfe: int, path: Path) -> Path:
    """A row of images for the teacher and each variant, from the same noises, as WebP."""
    from PIL import Image, ImageDraw, ImageFont

    rows = {name: _images(file) for name, file in files.items()}
    side = max(_SIDE, *(images.shape[1] for images in rows.values()))
    label, gap = 175, 2
    count = min(len(images) for images in rows.values())
    sheet = Image.new("RGB", (label + count * (side + gap), len(rows) * (side + gap)), "white")
    draw_on, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (name, images) in enumerate(rows.items()):
        top = row * (side + gap)
        text = name if name == TEACHER else f"{name}, {nfe} NFE"
        draw_on.text((4, top + side // 2 - 8), text, fill="black", font=font)
        for column in range(count):
            image = Image.fromarray(images[column]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(image, (label + column * (side + gap), top))
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="WEBP", quality=_QUALITY, method=6)
    return path


def _images(path: Path) -> NDArray[np.uint8]:
    from safetensors.numpy import load_file

    found: NDArray[np.uint8] = load_file(path)["images"]
    return found


def _figure(panels: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, path: Path) -> Path:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=_DPI)
    return path
