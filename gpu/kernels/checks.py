"""Whether the kernels are right: golden vectors, float64 at true sizes, sizes that 16 bytes do not divide, noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.kernels.fields import Field, Size, download, free, poison, put, random_field, reserve, upload
from gpu.records import Emit

if TYPE_CHECKING:
    from runtime.cuda.interface import Device

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "solver.json"
GOLDEN_TOLERANCE = 2e-6
WIDE_TOLERANCE = 1e-5
"""Where a gamma makes e^30, a float32 coefficient has lost more."""

TOLERANCE = 2e-6
"""Relative L2 error of the move (not of the state) against float64 on the very same values of the field."""

_SECOND = 1.6 / 2.1
LEVELS = ((1.0, 1.0, _SECOND), (_SECOND, _SECOND, 0.0), (_SECOND, 0.6, 0.3))
"""sigma_src, sigma_a, sigma_b of both steps of a two-step image, and of a preview inside a segment."""

_CHUNK = 16_384


def check_golden(emit: Emit, device: Device) -> None:
    """Every golden case in float32, from the file of vectors that all solvers of the project are held to."""
    import torch

    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    worst, name = 0.0, ""
    failed = []
    for case in cases:
        shape = case["shape"]
        size = Size(shape["tokens"], shape["batch"], shape["modes"], shape["channels"], "float32")
        parts = {}
        for key, modes, width in (
            ("means", size.modes, size.channels),
            ("logweights", size.modes, shape["positions"]),
            ("loggammas", size.modes - 1, shape["positions"]),
        ):
            values = np.array(case[key], np.float32).reshape(1, size.all_tokens, modes, width)
            parts[key] = torch.from_numpy(values)
        x = torch.tensor(case["x_a"], dtype=torch.float32).reshape(1, size.all_tokens, size.channels)
        field = Field(size, parts["means"], parts["logweights"], parts["loggammas"], x)
        moved = _advance(device, field, (case["sigma_src"], case["sigma_a"], case["sigma_b"]))
        wanted = np.array(case["x_b"]).reshape(moved.shape)
        error = _nan_worst(float(np.abs(moved - wanted).max()) / float(np.abs(wanted).max()))
        if not error < (WIDE_TOLERANCE if case["name"] == "wide gammas" else GOLDEN_TOLERANCE):
            failed.append(case["name"])
        if error > worst:
            worst, name = error, case["name"]
    emit(
        "solver: golden vectors",
        f"{len(cases) - len(failed)} of {len(cases)} cases, worst {worst:.1e} ({name})",
        not failed,
        check=True,
        worst=worst,
        failed=failed,
    )


def check_sizes(
    emit: Emit, device: Device, where: str, tokens: tuple[int, ...], batches: tuple[int, ...], dtypes: tuple[str, ...]
) -> None:
    """Both steps and a preview at every size and type, against float64. where: torch's device for the reference."""
    for dtype in dtypes:
        for count in tokens:
            errors, greatest = {}, 0.0
            for batch in batches:
                size = Size(count, batch, 16, 64, dtype)
                field = random_field(size, seed=count + batch, where=where)
                placed = reserve(device, size)
                upload(device, field, placed)
                for levels in LEVELS:
                    poison(device, placed)
                    put(device, placed, levels)
                    error, most = compare(download(device, placed), field, levels)
                    errors[f"{batch}, {levels[1]:.3f} to {levels[2]:.3f}"] = error
                    greatest = max(greatest, most)
                free(device, [placed])
            worst = max(errors.values())
            emit(
                f"solver: float64, {count} tokens, batch {batches[0]}-{batches[-1]}, {dtype}",
                f"relative error of the move {worst:.1e} (greatest of one value {greatest:.1e})",
                worst < TOLERANCE,
                check=True,
                errors=errors,
                greatest=greatest,
            )


def check_odd(emit: Emit, device: Device, where: str) -> None:
    """Sizes that 16 bytes do not divide, one mode, very many modes, addresses off 16 bytes, in place, raw logits."""
    import torch

    shapes = [(7, 16, 64, 0), (1, 1, 64, 0), (129, 3, 12, 0), (33, 64, 64, 0), (5, 600, 8, 0), (40, 16, 64, 4)]
    worst = {}
    for dtype in ("float32", "float16", "bfloat16"):
        for tokens, modes, channels, shift in shapes:
            size = Size(tokens, 1, modes, channels, dtype)
            field = random_field(size, seed=tokens, where=where)
            moved = _advance(device, field, LEVELS[1], shift=shift)
            name = f"{tokens}x{modes}x{channels} {dtype}" + (f" off by {shift}" if shift else "")
            worst[name] = compare(moved, field, LEVELS[1])[0]
    size = Size(300, 2, 16, 64, "float32")
    field = random_field(size, seed=1, where=where)
    worst["in place"] = compare(_advance(device, field, LEVELS[0], in_place=True), field, LEVELS[0])[0]
    shifted = Field(size, field.means, field.logweights + 3.0, field.loggammas, field.x)
    for dtype in ("float32", "bfloat16"):
        logits = shifted.logweights.to(getattr(torch, dtype))
        of_type = Size(300, 2, 16, 64, dtype)
        cast = [part.to(getattr(torch, dtype)) for part in (field.means, field.loggammas)]
        raw = Field(of_type, cast[0], logits, cast[1], field.x)
        normal = Field(of_type, cast[0], torch.log_softmax(logits.double(), dim=-2), cast[1], field.x)
        worst[f"raw logits, {dtype}"] = compare(_advance(device, raw, LEVELS[0], raw=True), normal, LEVELS[0])[0]
    odd = [name for name, error in worst.items() if not error < TOLERANCE]
    most = max(worst.values())
    shown = f"{len(worst) - len(odd)} of {len(worst)}, worst {most:.1e}" + (
        f"; not {', '.join(odd[:3])}" if odd else ""
    )
    emit("solver: odd sizes, in place, raw logits", shown, not odd, check=True, errors=worst)


def check_neighbours(emit: Emit, device: Device) -> None:
    """Noise, unpacking, bytes and the search for what is not finite, each against the runtime's numpy."""
    from foundation import noise
    from runtime.architectures import layout
    from runtime.cuda.interface import Unpack

    count = 4096 * 64
    buffer = device.allocate(count * 4, "the benchmark's noise")
    made = np.empty(count, np.float32)
    differing = 0
    for seed in (0, 7, (1 << 64) - 1):
        device.normal(seed, count, buffer)
        device.download(buffer, made)
        differing += int((made != noise.normal(seed, 4096, 64).ravel()).sum())
    emit("noise, 3 seeds of 262,144 values", f"{differing} values differ from numpy", differing <= 3, check=True)

    rows, columns = 12, 20
    tokens = noise.normal(3, rows * columns, 64)
    latents = np.empty((1, 16, rows * 2, columns * 2), np.float32)
    device.upload(buffer, tokens)
    target = device.allocate(latents.nbytes, "the benchmark's latents")
    device.unpack(Unpack(buffer, target, 1, rows, columns, 16, 2, [0.3611], [0.1159]))
    device.download(target, latents)
    wanted = layout.unpack(tokens[None], rows, columns, 2) / np.float32(0.3611) + np.float32(0.1159)
    error = float(np.abs(latents - wanted).max())
    emit("tokens to latents", f"greatest difference {error:.1e}", error < 1e-6, check=True)

    images = (noise.normal(5, 48 * 36, 3) * np.float32(0.7)).reshape(1, 3, 48, 36)
    pixels = np.empty((1, 48, 36, 3), np.uint8)
    device.upload(buffer, images)
    device.to_rgb8(buffer, target, (1, 48, 36))
    device.download(target, pixels)
    off = int((pixels != layout.to_pixels(images)).sum())
    emit("images to bytes", f"{off} of {pixels.size} bytes differ", off == 0, check=True)

    found = np.empty(1, np.uint32)
    answers = []
    for place, value in ((None, 0.0), (0, np.nan), (1001, np.inf), (1000, -np.inf)):
        values = noise.normal(9, 1002, 1).ravel()
        if place is not None:
            values[place] = value
        device.upload(buffer, values)
        device.find_nonfinite(buffer, values.size, target)
        device.download(target, found)
        answers.append(int(found[0]))
    emit("search for NaN and infinity", f"answers {answers}", answers == [0, 1, 1, 1], check=True)
    device.free(buffer)
    device.free(target)


def compare(
    moved: np.ndarray[Any, np.dtype[np.float32]], field: Field, levels: tuple[float, float, float]
) -> tuple[float, float]:
    """Relative L2 error of the move against float64 on the same values, and the greatest absolute error of a value."""
    import torch

    from arcflow.field import MomentumField, displacement

    sigmas = [torch.tensor(level, dtype=torch.float64, device=field.x.device) for level in levels]
    total, scale, greatest = 0.0, 0.0, 0.0
    result = torch.from_numpy(moved).to(field.x.device)
    for first in range(0, result.shape[0], _CHUNK):
        rows = slice(first, first + _CHUNK)
        parts = (part[:, rows].double() for part in (field.means, field.logweights, field.loggammas))
        move = displacement(MomentumField(*parts), *sigmas)[0]
        difference = result[rows].double() - (field.x[0, rows].double() + move)
        total += float(difference.square().sum())
        scale += float(move.square().sum())
        greatest = max(greatest, _nan_worst(float(difference.abs().max())))
    return _nan_worst(math.sqrt(total / max(scale, 1e-300))), greatest


def _advance(
    device: Device,
    field: Field,
    levels: tuple[float, float, float],
    *,
    shift: int = 0,
    in_place: bool = False,
    raw: bool = False,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    placed = reserve(device, field.size, shift)
    upload(device, field, placed)
    if in_place:
        device.copy(placed.out, placed.x, field.size.parts[3])
        placed = replace(placed, x=placed.out)
    put(device, placed, levels, raw=raw)
    moved = download(device, placed)
    free(device, [placed])
    return moved


def _nan_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf
