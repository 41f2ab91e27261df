"""How much the output field changes when one layer, or one block, is quantised and all else is not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.fp8.calibration import Calibration
from export.fp8.policy import block_of, layer_of, select_layers, weight_of
from export.fp8.simulation import fake_quantised
from export.networks.base import INNER, Network
from export.networks.streaming import Placement, open_module
from export.quality.gate import FIRST_NOISE, relative_l2
from export.quality.measure import linears
from export.reporting import Count, silent
from export.students.rollout import Evaluate, noises, rollout
from foundation.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

    from export.students.prompts import Prompted

_BAR_INCHES = 0.18


@dataclass(frozen=True)
class LayerErrors:
    """Errors, worst first: relative L2 of the displacement over a segment, the worst of the segments.

    layers, blocks: when only that one is quantised; together: when all of the layers are.
    """

    layers: tuple[tuple[str, float], ...]
    blocks: tuple[tuple[str, float], ...]
    together: float


def layer_errors(
    network: Network, calibration: Calibration, prompted: Prompted, sigmas: Sequence[float],
    report: Count = silent,
) -> LayerErrors:  # fmt: skip
    """Measure every layer that FP8 takes by the network's own list, in float32 on the CPU.

    sigmas: noise levels, 1 first and 0 last; each segment starts where the unquantised student arrives.
    Raises CalibrationError where the calibration lacks a layer, WeightsError where the student lacks a tensor.
    """
    import torch

    device = torch.device("cpu")
    module = open_module(network, torch.float32, device, Placement.HOLD)
    backbone: Any = getattr(module, INNER)
    weights = select_layers([weight_of(name) for name in linears(backbone)], network.fp8_layers)
    calibration.input_scales(weights)
    layers = [layer_of(weight) for weight in weights]
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        blocks.setdefault(block_of(layer), []).append(layer)
    evaluate = prompted.calling(module)
    segments = _segments(evaluate, network, prompted, sigmas)
    trials = [("layer", layer, [layer]) for layer in layers]
    trials += [("block", block, members) for block, members in blocks.items()]
    trials.append(("all", "all", layers))
    errors: dict[tuple[str, str], float] = {}
    for number, (kind, name, members) in enumerate(trials, 1):
        with fake_quantised(backbone, {layer: calibration.amax[layer] for layer in members}):
            errors[kind, name] = max(_error(evaluate, segment) for segment in segments)
        report(number, len(trials))
    return LayerErrors(_sorted(errors, "layer"), _sorted(errors, "block"), errors["all", "all"])


def suggest(errors: LayerErrors, target: float) -> tuple[str, ...]:
    """The fewest layers to keep high so that the rest, together, should err by ``target`` at most.

    Errors of layers are taken as independent: their squares add up, scaled to what all of them gave together.
    """
    remaining = sum(error**2 for _, error in errors.layers)
    scale = errors.together**2 / remaining if remaining else 0.0
    kept = []
    for name, error in errors.layers:
        if scale * remaining <= target**2:
            break
        kept.append(name)
        remaining -= error**2
    return tuple(kept)


def write_errors(errors: LayerErrors, kept: Sequence[str], target: float, path: Path) -> None:
    """Write all figures as JSON. Raises ArcFlowError."""
    content = {
        "measure": "relative L2 of the displacement over a segment, worst segment",
        "layers": dict(errors.layers),
        "blocks": dict(errors.blocks),
        "together": errors.together,
        "keep_high": {"target": target, "layers": list(kept)},
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def plot(errors: LayerErrors, path: Path) -> None:
    """Draw the layers' errors as horizontal bars, worst on top, to a PNG. Raises ArcFlowError."""
    from matplotlib.figure import Figure

    names = [name for name, _ in errors.layers]
    figure = Figure(figsize=(8.0, 1.0 + _BAR_INCHES * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [100.0 * error for _, error in errors.layers])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("error when only this layer is in FP8, %")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


@dataclass(frozen=True)
class _Segment:
    """A segment of the unquantised student. ends: (start, end) noise levels; truth: the latent at its end."""

    x: Tensor
    ports: Mapping[str, Tensor]
    ends: tuple[float, float]
    truth: Tensor


def _segments(evaluate: Evaluate, network: Network, prompted: Prompted, sigmas: Sequence[float]) -> list[_Segment]:
    channels, tokens = int(network.ports_in["hidden_states"][1][-1]), prompted.rows * prompted.columns
    x = noises(range(FIRST_NOISE, FIRST_NOISE + len(prompted)), tokens, channels)
    ports = prompted.ports(slice(0, len(prompted)))
    found = []
    for ends in itertools.pairwise(sigmas):
        truth = rollout(evaluate, x, ports, ends)
        found.append(_Segment(x, ports, ends, truth))
        x = truth
    return found


def _error(evaluate: Evaluate, segment: _Segment) -> float:
    """Mean over prompts of the relative L2 error of the segment's displacement; infinite where it is not a number."""
    x = rollout(evaluate, segment.x, segment.ports, segment.ends)
    error = float(relative_l2(x - segment.x, segment.truth - segment.x).mean())
    return error if math.isfinite(error) else math.inf


def _sorted(errors: Mapping[tuple[str, str], float], kind: str) -> tuple[tuple[str, float], ...]:
    chosen = [(name, error) for (group, name), error in errors.items() if group == kind]
    return tuple(sorted(chosen, key=lambda pair: (-pair[1], pair[0])))
