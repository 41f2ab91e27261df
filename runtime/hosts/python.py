"""``host="python"``: networks in ONNX Runtime, noise and solver in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engines.schema import LEVELS_A_RUN, SEQUENCE
from foundation import noise
from runtime import solver
from runtime.architectures import architecture_of, layout
from runtime.architectures.base import Array, Conditions, Grid, Tokens
from runtime.errors import BackendError
from runtime.hosts.batches import NOT_FINITE, STAGES, Batch, collect, members_of, tokenize
from runtime.hosts.interface import CLOSED, weight_bytes
from runtime.hosts.onnx_network import LoadedNetwork, OnnxRuntimeNetwork, describe
from runtime.result import Generation, OnPreview, OnStep, Pixels, Settings
from runtime.text import PromptTokenizer, load_tokenizers
from runtime.timing import Stopwatch

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.schema import Manifest
    from runtime.request import Request


def open_python(bundle: Bundle, *, threads: int, gpu: int | None) -> PythonHost:
    """Load an opened bundle of ONNX files on that GPU, or on the CPU. Raises BundleError, BackendError."""
    networks = {
        name: OnnxRuntimeNetwork(
            name, bundle.read(spec.file), spec, threads, {path: bundle.map(path) for path in spec.data}, gpu
        )
        for name, spec in bundle.manifest.networks.items()
    }
    return PythonHost(bundle.manifest, networks, load_tokenizers(bundle), backend=describe(networks.values()))


class Networks:
    """The networks of a bundle: arrays in, arrays out, a batch at a time; every method raises BackendError."""

    def __init__(self, manifest: Manifest, networks: Mapping[str, LoadedNetwork]) -> None:
        self.architecture = architecture_of(manifest)
        self._manifest = manifest
        self._networks = networks

    def evaluate(self, inputs: Mapping[str, Array]) -> solver.MomentumField:
        """One evaluation of the backbone, for a batch within the limits."""
        outputs = self._networks["backbone"].run(inputs)
        field = solver.MomentumField(outputs["means"], outputs["logweights"], outputs["loggammas"])
        momentum, head = self._manifest.momentum, inputs["hidden_states"].shape[:2]
        modes, positions = momentum.modes, momentum.patch_positions
        expected = ((*head, modes, momentum.packed_channels), (*head, modes, positions), (*head, modes - 1, positions))
        actual = (field.means.shape, field.logweights.shape, field.loggammas.shape)
        if actual != expected:
            raise BackendError(f"the backbone gave outputs of shapes {actual}; its manifest makes them {expected}")
        return field

    def condition(
        self, levels: Mapping[str, Array], conditions: Mapping[str, Array], batch: int
    ) -> tuple[dict[str, Array], Array]:
        """What the conditioner makes of a batch: the backbone's inputs of all evaluations, and of each.

        levels: as :meth:`runtime.architectures.base.Architecture.levels`. Returns the first by port, and the
        modulation [levels, batch, M].
        """
        count = len(levels["timestep"]) // batch
        made: dict[str, Array] = {}
        rows = []
        for first in range(0, count, LEVELS_A_RUN):
            some = {port: values[first * batch : (first + LEVELS_A_RUN) * batch] for port, values in levels.items()}
            pooled = np.tile(conditions["pooled_projections"], (len(some["timestep"]) // batch, 1))
            made = dict(self._networks["conditioner"].run({**conditions, **some, "pooled_projections": pooled}))
            rows.append(made.pop("modulation"))
        return made, np.concatenate(rows).reshape(count, batch, -1)

    def decode(self, x: Tokens, grid: Grid) -> tuple[Pixels, ...]:
        """The images of packed latents."""
        return tuple(layout.to_pixels(self.run("vae_decoder", {"latents": self.architecture.vae_latents(x, grid)})))

    def run(self, name: str, inputs: Mapping[str, Array]) -> Array:
        """The first output of a network for ``inputs``, at most a batch at a time."""
        output = self._manifest.networks[name].outputs[0].name
        most = self._manifest.limits.batch.max
        count = len(next(iter(inputs.values())))
        results = [
            self._networks[name].run({port: values[i : i + most] for port, values in inputs.items()})[output]
            for i in range(0, count, most)
        ]
        return np.concatenate(results)


class PythonHost:
    """A bundle of ONNX files. Made by :func:`open_python`; tests compose one from parts."""

    def __init__(
        self,
        manifest: Manifest,
        networks: Mapping[str, LoadedNetwork],
        tokenizers: Mapping[str, PromptTokenizer],
        *,
        backend: str = "",
    ) -> None:
        self.manifest = manifest
        self.networks: Networks | None = Networks(manifest, networks)
        self.tokenizers = tokenizers
        self.backend = backend

    def generate(
        self,
        request: Request,
        settings: Settings,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
    ) -> Generation:
        """As :class:`runtime.hosts.interface.Host`. The networks' own errors are BackendErrors too."""
        if (networks := self.networks) is None:
            raise BackendError(CLOSED)
        clock, architecture = Stopwatch(*STAGES), networks.architecture
        prompts = tokenize(self.tokenizers, request, clock)
        with clock.stage("text"):
            conditions = architecture.encode(networks.run, prompts.ids)
        made = []
        for members in members_of(self.manifest, request):
            rows = conditions.rows(prompts.rows[members.start : members.stop])
            made.append(ArrayBatch(networks, settings, members, rows, clock).make(request, on_step, on_preview))
        return collect(made, settings, clock, prompts.warnings)

    def memory(self) -> Mapping[str, int]:
        """weights: bytes of the networks' files; ONNX Runtime does not say what it made of them."""
        return {"weights": 0 if self.networks is None else weight_bytes(self.manifest)}

    def close(self) -> None:
        """Let the networks go; a generation that runs ends first."""
        self.networks = None


class ArrayBatch(Batch):
    """A batch in numpy: the state, and the field of the evaluated segment."""

    def __init__(
        self, networks: Networks, settings: Settings, members: range, conditions: Conditions, clock: Stopwatch
    ) -> None:
        """The noise of the images, and what the backbone is fed at each evaluation."""
        super().__init__(networks.architecture, settings, members)
        self._networks = networks
        self._clock = clock
        self._field: solver.MomentumField
        with clock.stage("noise"):
            channels = self.architecture.manifest.momentum.packed_channels
            self._x = np.stack([noise.normal(settings.seeds[j], self.grid.tokens, channels) for j in members])
        tokens, width = conditions.tokens.tolist(), conditions.values[SEQUENCE].shape[1]
        self._fed = {**conditions.values, **self.architecture.constants(tokens, width, self.grid)}
        levels = self.architecture.levels(settings.sigmas[:-1], settings.guidance, len(self._x))
        if self.architecture.conditioned:
            with clock.stage("text"):
                self._fed, modulation = networks.condition(levels, self._fed, len(self._x))
            self._of_level = {"modulation": modulation}
        else:
            self._of_level = {port: rows.reshape(settings.nfe, -1) for port, rows in levels.items()}

    def evaluate(self, index: int) -> None:
        with self._clock.stage("backbone"):
            own = {port: rows[index] for port, rows in self._of_level.items()}
            self._field = self._networks.evaluate({"hidden_states": self._x, **own, **self._fed})

    def advance(self, index: int) -> None:
        self._x = self._at(index, self.settings.sigmas[index + 1])

    def preview(self, index: int, sigma: float) -> Sequence[Pixels]:
        x = self._at(index, sigma)
        with self._clock.stage("vae"):
            return self._networks.decode(x, self.grid)

    def state(self) -> Tokens:
        return self._x

    def finish(self) -> tuple[Tokens, Sequence[Pixels]]:
        if not np.isfinite(self._x).all():
            raise BackendError(NOT_FINITE)
        with self._clock.stage("vae"):
            return self._x, self._networks.decode(self._x, self.grid)

    def _at(self, index: int, sigma: float) -> Tokens:
        """The state at ``sigma`` inside the evaluated segment."""
        src = self.settings.sigmas[index]
        with self._clock.stage("solver"):
            moved = self._x + solver.displacement(self._field, src, src, sigma)
            return moved.astype(np.float32, copy=False)
