"""A plan run once: arrays in, arrays out, in memory of its own. Inputs are made where none are given.

Built, not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from engines.memory.extents import shape_of
from runtime import solver
from runtime.architectures import architecture_of
from runtime.architectures.base import Array, Grid
from runtime.cuda.interface import Bound, Device, Engine
from runtime.errors import BackendError

if TYPE_CHECKING:
    from engines.schema import Manifest, Network

_SEED = 20261128
_SPREAD = 0.3
"""Standard deviation of made modulation; what a conditioner gives is of that size."""

Shapes = Mapping[str, Sequence[int]]
"""By input."""


def run_once(device: Device, engine: Engine, spec: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One evaluation of a loaded plan, outputs by name; nothing of it is left on the device.

    Raises BackendError where the inputs do not fit the plan's profile, DeviceMemoryError.
    """
    dims = dimensions(spec, {name: values.shape for name, values in inputs.items()})
    outputs = {port.name: np.empty(shape_of(port, dims), dtype=port.dtype) for port in spec.outputs}
    with ExitStack() as held:

        def place(name: str, size: int) -> int:
            address = device.allocate(size, f"{name} of the {engine.name} network")
            held.callback(device.free, address)
            return address

        scratch = place("scratch memory", engine.activation_bytes)
        taken, given = (
            {name: Bound(place(name, values.nbytes), values.shape) for name, values in ports.items()}
            for ports in (inputs, outputs)
        )
        for name, values in inputs.items():
            device.upload(taken[name].address, values)
        engine.bind(taken, given, scratch).enqueue()
        for name, values in outputs.items():
            device.download(given[name].address, values)
    return outputs


def make_inputs(manifest: Manifest, vocabularies: Mapping[str, int], network: str, shapes: Shapes) -> dict[str, Array]:
    """Random inputs of a network that it could meet, the same each time.

    vocabularies: the number of tokens that each text encoder knows. Text fills its whole length; noise levels are those
    of the bundle's own schedule. Raises BackendError for an input that nothing is known of.
    """
    spec = manifest.networks[network]
    dims, architecture, schedule = dimensions(spec, shapes), architecture_of(manifest), manifest.schedule
    generator = np.random.default_rng([_SEED, *network.encode()])
    batch, text = dims.get("batch", 1), dims.get("text_tokens", 1)
    fixed = architecture.constants([text] * batch, text, Grid(1, dims.get("image_tokens", 1)))
    levels = solver.sigmas(schedule.nfe, schedule.shift, schedule.final_step_ratio)[:-1]

    def made(name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        if name in fixed:
            return fixed[name]
        match name:
            case "input_ids":
                return generator.integers(vocabularies[network], size=shape)
            case "attention_mask":
                return np.ones(shape, dtype=np.int64)
            case "timestep":
                return np.resize(architecture.as_trained(levels), shape)
            case "guidance":
                return architecture.as_trained(np.full(shape, schedule.guidance))
            case "image_rotary" | "text_rotary":
                angles = generator.uniform(0, 2 * np.pi, (shape[0], shape[1] // 2))
                return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
            case "modulation":
                return _SPREAD * generator.standard_normal(shape)
        if dtype != "float32":
            raise BackendError(f"the {network} network takes {name!r}, {dtype}, which cannot be made up")
        return generator.standard_normal(shape)

    return {
        port.name: np.ascontiguousarray(made(port.name, port.dtype, tuple(shapes[port.name])), dtype=port.dtype)
        for port in spec.inputs
    }


def dimensions(spec: Network, shapes: Shapes) -> dict[str, int]:
    """The value of each symbolic dimension of a network whose inputs have these shapes. Raises BackendError."""
    dims: dict[str, int] = {}
    for port in spec.inputs:
        shape = tuple(shapes.get(port.name, ()))
        known = {name: size for name, size in zip(port.shape, shape, strict=False) if isinstance(name, str)}
        if len(shape) != len(port.shape) or shape_of(port, {**known, **dims}) != shape:
            raise BackendError(f"{port.name!r} has the shape {list(shape)}; the network takes {list(port.shape)}")
        dims.update(known)
    return dims
