"""Plans run one after the other, each once and alone on the GPU: those of a bundle, or those that ``export`` asks for.

Built, not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.bundle import Bundle, open_bundle
from engines.files import map_file
from engines.machine import Machine, this_machine
from engines.schema import SOURCE_TARGET
from engines.staleness import require_fresh
from engines.tensorrt import Toolkit, load
from engines.trials import Ran, Trial, inputs_file, outputs_file, read_trials
from engines.trust import require_ours
from runtime.architectures.base import Array
from runtime.cuda.errors import DeviceError
from runtime.cuda.interface import Device
from runtime.cuda.once import make_inputs, run_once
from runtime.cuda.opening import check_driver
from runtime.cuda.plans.engine import TensorRTEngine
from runtime.cuda.plans.loading import load_plan
from runtime.cuda.plans.runtime_cache import RuntimeCache
from runtime.errors import BackendError
from runtime.text import load_tokenizers


@dataclass(frozen=True)
class OpenTrials:
    """Plans, and the GPU that they run on. Made by the functions below; to be closed.

    source: the bundle whose tokenizers and schedule inputs are made by. arrays: the folder in which inputs are looked
    for and everything is kept; None for nowhere.
    """

    trials: Sequence[Trial]
    source: Bundle | None
    arrays: Path | None
    toolkit: Toolkit
    device: Device
    cache: RuntimeCache

    @property
    def backend(self) -> str:
        """What runs them, for people."""
        return f"{self.toolkit.flavour} {self.toolkit.version}, {self._gpu}"

    def run(self) -> Iterator[Ran]:
        """One after the other. Raises BundleError, BackendError, DeviceMemoryError."""
        for trial in self.trials:
            inputs = self._inputs(trial)
            outputs = self._run(trial, inputs)
            if self.arrays is not None:
                np.savez(self.arrays / inputs_file(trial.name), **inputs)  # type: ignore[arg-type]
                np.savez(self.arrays / outputs_file(trial.name), **outputs)  # type: ignore[arg-type]
            bad = {name: (int(np.sum(~np.isfinite(values))), values.size) for name, values in outputs.items()}
            shapes = {name: values.shape for name, values in inputs.items()}
            yield Ran(trial.name, shapes, {name: counts for name, counts in bad.items() if counts[0]})

    def close(self) -> None:
        """Keep what TensorRT compiled, and give the GPU back."""
        self.cache.close()
        self.device.close()

    @property
    def _gpu(self) -> str:
        return f"{self.device.info.name} ({self.device.info.capability})"

    def _run(self, trial: Trial, inputs: Mapping[str, Array]) -> dict[str, Array]:
        content = map_file(Path(trial.folder), trial.file)
        plan = load_plan(trial.name, content, trial.spec, self.toolkit, self._gpu)
        with closing(TensorRTEngine(self.device, plan, self.cache)) as engine:
            return run_once(self.device, engine, trial.spec, inputs)

    def _inputs(self, trial: Trial) -> dict[str, Array]:
        if self.arrays is not None and (self.arrays / inputs_file(trial.name)).is_file():
            with np.load(self.arrays / inputs_file(trial.name), allow_pickle=False) as given:
                return dict(given)
        if self.source is None:
            raise BackendError(f"there are no inputs for {trial.name}, and no bundle to make them by")
        vocabularies = {name: tokenizer.vocabulary for name, tokenizer in load_tokenizers(self.source).items()}
        return make_inputs(self.source.manifest, vocabularies, trial.network, trial.shapes)


def open_bundle_trials(folder: Path) -> OpenTrials:
    """The plans of a bundle, at their profiles' usual shapes.

    Raises BackendError for a bundle without plans; else as :func:`runtime.cuda.opening.open_cuda`.
    """
    bundle = open_bundle(folder, contents="when used")
    manifest, engine = bundle.manifest, bundle.manifest.engine
    if engine is None:
        name = bundle.name
        make = f"engine {folder}" if name.target == SOURCE_TARGET else f"build --model {name.model}"
        raise BackendError(
            f"{folder} holds no plans, and only plans are run so: build them with python -m export.{make} --target "
            "TARGET"
        )
    require_ours(manifest)
    entries = {entry.path: entry for entry in manifest.files}
    trials = [
        Trial(
            name=name,
            network=name,
            spec=network,
            folder=str(bundle.root),
            file=entries[network.file],
            shapes={port: shapes.opt for port, shapes in engine.profiles[name].items()},
        )
        for name, network in manifest.networks.items()
    ]

    def check(machine: Machine) -> None:
        require_fresh(bundle, machine)

    made = _open(engine.flavour, engine.compute_capabilities, bundle.root, check)
    return OpenTrials(trials, bundle, None, *made)


def open_trials(folder: Path) -> OpenTrials:
    """What ``export`` asks for in ``folder``. Raises BundleError, TrustError, FlavourError, DeviceError."""
    asked = read_trials(folder)
    source = open_bundle(Path(asked.source), contents="when used") if asked.source else None

    def check(machine: Machine) -> None:
        if not set(machine.gpus) & set(asked.compute_capabilities):
            allowed = ", ".join(asked.compute_capabilities)
            raise DeviceError(f"the plans are for {allowed}, and the GPU is {', '.join(machine.gpus)}")

    made = _open(asked.flavour, asked.compute_capabilities, folder, check)
    return OpenTrials(asked.trials, source, folder, *made)


def _open(
    flavour: str, capabilities: Sequence[str], root: Path, check: Callable[[Machine], None]
) -> tuple[Toolkit, Device, RuntimeCache]:
    """TensorRT, and the first GPU of these capabilities; where there is none the first one, which ``check`` rejects."""
    from runtime.cuda.device.gpu import open_device

    toolkit = load(flavour)
    fitting = (ordinal for ordinal, gpu in enumerate(this_machine().gpus) if gpu in capabilities)
    device = open_device(next(fitting, 0))
    try:
        check(Machine(gpus=(device.info.capability,), flavours={flavour: toolkit.version}))
        check_driver(toolkit, device.info)
        return toolkit, device, RuntimeCache(root, toolkit, device.info.capability)
    except BaseException:
        device.close()
        raise
