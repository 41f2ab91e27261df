"""Which networks are on the device, and the memory that they work in.

All of them at once, with one arena for all buffers; or, where the device's memory is scarce, a group at a time: each
text encoder alone, the conditioner alone, then the backbone with the VAE decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from engines.memory.arena import ArenaPlan, plan_arena
from engines.memory.buffers import ZEROS, groups_of, needs_of, port_buffer, scratch_buffer
from engines.memory.extents import Extents, size_of
from engines.schema import Manifest, Port
from runtime.cuda.errors import mebibytes
from runtime.cuda.interface import Bound, Device, Engine, Evaluation
from runtime.errors import BackendError

Loader = Callable[[], Engine]
"""Puts a network on the device."""

Shapes = Mapping[str, tuple[int, ...]]
"""By port."""


class Group:
    """Networks that are on the device together, and the arena of their buffers."""

    def __init__(
        self, device: Device, manifest: Manifest, extents: Extents, names: Sequence[str], loaders: Mapping[str, Loader]
    ) -> None:
        """names: in the order in which they run. Nothing is loaded yet."""
        self.names = tuple(names)
        self._device = device
        self._manifest = manifest
        self._extents = extents
        self._loaders = loaders
        self._engines: dict[str, Engine] = {}
        self.plan: ArenaPlan | None = None
        self._address = 0

    @property
    def loaded(self) -> bool:
        return self.plan is not None

    @property
    def weight_bytes(self) -> int:
        return sum(engine.weight_bytes for engine in self._engines.values())

    def load(self) -> None:
        """Load the networks and allocate their arena. Raises BackendError, DeviceMemoryError; nothing is left then."""
        try:
            for name in self.names:
                self._engines[name] = self._loaders[name]()
            scratch = {name: engine.activation_bytes for name, engine in self._engines.items()}
            plan = plan_arena(needs_of(self._manifest, self._extents, self.names, scratch))
            self._address = self._device.allocate(plan.size, f"the buffers of {', '.join(self.names)}")
            self.plan = plan
            if ZEROS in plan.sizes:
                self._device.upload(self.address(ZEROS), np.zeros(plan.sizes[ZEROS], dtype=np.uint8))
        except BaseException:
            self.unload()
            raise

    def unload(self) -> None:
        """Free all; recordings that use it must be gone. May be called twice."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        if self._address:
            self._device.free(self._address)
        self._address, self.plan = 0, None

    def address(self, buffer: str) -> int:
        """Where a buffer lies. Raises BackendError where the group is not loaded."""
        if self.plan is None:
            raise BackendError(f"{', '.join(self.names)} are not on the GPU")
        return self._address + self.plan.offsets[buffer]

    def evaluation(self, name: str, inputs: Shapes, outputs: Shapes) -> Evaluation:
        """A network at those shapes, in its own buffers. Raises BackendError where a shape has no room."""
        spec = self._manifest.networks[name]
        taken, given = (
            {port.name: self._bound(name, port, shapes[port.name]) for port in ports}
            for ports, shapes in ((spec.inputs, inputs), (spec.outputs, outputs))
        )
        return self._engines[name].bind(taken, given, self.address(scratch_buffer(name)))

    def _bound(self, network: str, port: Port, shape: tuple[int, ...]) -> Bound:
        buffer, size = port_buffer(network, port.name), size_of(port, shape)
        room = 0 if self.plan is None else self.plan.sizes[buffer]
        if size > room:
            raise BackendError(
                f"{port.name!r} of the {network} network takes {mebibytes(size)} as {list(shape)}; its buffer has "
                f"{mebibytes(room)}"
            )
        return Bound(self.address(buffer), shape)


class Residents:
    """The groups of a bundle."""

    def __init__(
        self,
        device: Device,
        manifest: Manifest,
        extents: Extents,
        loaders: Mapping[str, Loader],
        *,
        low_vram: bool,
        forget: Callable[[], None],
    ) -> None:
        """low_vram: a group at a time. forget: drops what uses a group's memory, before it goes."""
        self.encoders = tuple(name for name in manifest.networks if name in manifest.tokenizers)
        self._peak = 0
        self._device = device
        self._forget = forget
        self._groups = [Group(device, manifest, extents, names, loaders) for names in groups_of(manifest, low_vram)]

    def need(self, name: str) -> Group:
        """The group of that network, on the device; with low_vram the others leave it first. Raises BackendError."""
        wanted = next(group for group in self._groups if name in group.names)
        if not wanted.loaded:
            for group in self._groups:
                if group.loaded:
                    self.release(group)
            wanted.load()
        self._peak = max(self._peak, self.memory()["weights"] + self._device.memory_used())
        return wanted

    def release(self, group: Group) -> None:
        """Take a group off the device, after what is on the stream."""
        self._device.synchronize()
        self._forget()
        group.unload()

    def close(self) -> None:
        """Take everything off the device."""
        for group in self._groups:
            if group.loaded:
                self.release(group)

    def memory(self) -> dict[str, int]:
        """Bytes: weights, buffers and what they would take apart now; the peak of weights and all that is allocated."""
        plans = [group.plan for group in self._groups if group.plan is not None]
        return {
            "weights": sum(group.weight_bytes for group in self._groups),
            "buffers": sum(plan.size for plan in plans),
            "apart": sum(plan.apart for plan in plans),
            "peak": self._peak,
        }
