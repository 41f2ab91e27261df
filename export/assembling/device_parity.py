"""Parity of plans on the GPU that they are for: each is run once, and held to torch or to the ONNX it was built from.

A network too large to be run on the CPU of this machine is run all the same, for values that are not finite; held to
torch is the plan of its twin, which the same code exports and builds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.schema import FileEntry, ParityResult, Range
from engines.schema import Network as Entry
from engines.trials import Trial, Trials
from export.assembling.manifest import ports
from export.assembling.parity import limit_of, onnx_session, relative_error, rounded, shape_text
from export.assembling.twin_parity import RUN_BELOW, export_twin, is_small
from export.errors import ParityError
from export.reporting import Report
from export.tensorrt.build import build_plan
from export.tensorrt.profiles import make_profile
from export.tensorrt.trials import Arrays, read_arrays, run_trials

if TYPE_CHECKING:
    import torch

    from engines.bundle import Bundle
    from engines.schema import Engine, Manifest
    from export.assembling.inputs import Build, Task
    from export.assembling.record import Exported
    from export.networks.base import Network, Sizes
    from export.tensorrt.build import PlanReport
    from export.tensorrt.plans import Setup

_SEED = 20261128
_BAR = "on the GPU"

Truth = Callable[[Arrays], "Sequence[torch.Tensor]"]
"""The outputs of what a plan is held to, of the same inputs and in the order of the ports."""


@dataclass(frozen=True)
class Case:
    """A plan to be run.

    sizes: of its dimensions. inputs: None for made ones. truth: None where there is nothing that it can be held to
    here. limit: the greatest relative L2 error of an output. twin: whether it is that of a network's twin.
    """

    trial: Trial
    sizes: Sizes
    limit: float
    truth: Truth | None
    inputs: Arrays | None = None
    twin: bool = False


def measure(
    manifest: Manifest, cases: Sequence[Case], report: Report, source: Path | None = None
) -> list[ParityResult]:
    """Run every plan, and hold those to their truth that have one; a result each.

    manifest: of the plans; source: the bundle by which inputs are made. Raises NotRunError where plans cannot be run
    here, ParityError for a value that is not finite or an error above its limit.
    """
    import torch

    if torch.cuda.is_initialized():  # By the measuring of FP8's scales: the GPU's memory is the plans' now.
        torch.cuda.empty_cache()
    report(_BAR, 0, len(cases) + 1, "run each plan")
    engine = _engine(manifest)
    with tempfile.TemporaryDirectory(prefix="arcflow-trials-") as temporary:
        folder = Path(temporary) / "trials"  # What TensorRT compiles is kept in the folder above.
        folder.mkdir()
        trials = Trials(
            flavour=engine.flavour,
            compute_capabilities=engine.compute_capabilities,
            trials=[case.trial for case in cases],
            source="" if source is None else str(source),
        )
        answer = run_trials(folder, trials, {c.trial.name: c.inputs for c in cases if c.inputs is not None})
        faults = [ran.fault for ran in answer.ran if ran.fault]
        if faults:
            raise ParityError(f"on {answer.device} {'; '.join(faults)}; choose another precision, or --opt-level")
        results = []
        for done, case in enumerate(cases, 1):
            report(_BAR, done, len(cases) + 1, f"compare {case.trial.name}" if case.truth else "")
            if case.truth is not None:
                results.append(_compare(case, case.truth, folder, answer.device))
    missed = [result for result in results if not result.relative_error <= result.limit]
    if missed:
        each = "; ".join(
            f"the plan of {_called(result)} differs by {result.relative_error:.1e} (relative L2) at "
            f"{shape_text(result)}, the limit is {result.limit:.0e}"
            for result in missed
        )
        raise ParityError(f"on {answer.device} {each}: try another --opt-level or version of TensorRT, and report it")
    report(_BAR, len(cases) + 1, len(cases) + 1, answer.device)
    return results


def measure_build(
    build: Build,
    networks: Sequence[Exported],
    plans: Sequence[PlanReport],
    manifest: Manifest,
    setup: Setup,
    report: Report,
) -> list[ParityResult]:
    """:func:`measure` of the plans that a build has just made. manifest: of their bundle, which is not written yet."""
    cases = []
    with tempfile.TemporaryDirectory(prefix="arcflow-twins-") as temporary:
        for exported, plan in zip(networks, plans, strict=True):
            case = _of_network(exported, plan, manifest)
            cases.append(case)
            if case.truth is None:
                report(_BAR, 0, 0, f"twin of {exported.name}")
                cases.append(_of_twin(exported.task, build, setup, Path(temporary) / exported.name, case.limit))
        return measure(manifest, cases, report)


def cases_of_bundle(source: Bundle, manifest: Manifest, plans: Mapping[str, tuple[Path, FileEntry]]) -> list[Case]:
    """The plans that were built from a bundle of ONNX networks, each held to its network where that is small enough.

    manifest: of the bundle of plans; plans: the folder and the file of each.
    """
    profiles = _engine(manifest).profiles
    sizes = {entry.path: entry.size for entry in source.manifest.files}
    cases = []
    for name, network in source.manifest.networks.items():
        folder, file = plans[name]
        shapes = {port: profile.opt for port, profile in profiles[name].items()}
        weights = sum(sizes[path] for path in (network.file, *network.data))
        small = weights * (1 if network.compute == "float32" else 2) <= RUN_BELOW
        spec = manifest.networks[name]
        cases.append(
            Case(
                Trial(name=name, network=name, spec=spec, folder=str(folder), file=file, shapes=shapes),
                _dims(spec, shapes),
                limit_of(source.manifest.parity, name, network.compute),
                _onnx(source.root / network.file, network) if small else None,
            )
        )
    return cases


def plan_file(plan: PlanReport) -> tuple[Path, FileEntry]:
    """Where a plan lies that was just built."""
    return plan.path.parent, FileEntry(path=plan.path.name, sha256=plan.sha256, size=plan.size)


def _of_network(exported: Exported, plan: PlanReport, manifest: Manifest) -> Case:
    network, spec = exported.task.network, manifest.networks[exported.name]
    folder, file = plan_file(plan)
    shapes = {port: profile.opt for port, profile in plan.profile.items()}
    dims = _dims(spec, shapes)
    if "image_tokens" in dims:
        dims = {"rows": manifest.limits.height.opt // (manifest.latent.vae_factor * manifest.latent.patch), **dims}
    trial = Trial(name=plan.network, network=plan.network, spec=spec, folder=str(folder), file=file, shapes=shapes)
    limit = limit_of(exported.record.parity, exported.name, exported.task.compute)
    return Case(trial, dims, limit, _torch(network) if is_small(network) else None, _examples(network, dims))


def _of_twin(task: Task, build: Build, setup: Setup, folder: Path, limit: float) -> Case:
    """The twin's plan, built for one shape."""
    network, model = export_twin(task, build, folder)
    onnx = folder / f"{task.name}.onnx"
    onnx.write_bytes(model)
    sizes = network.parity_sizes[1]
    spec = Entry(onnx.name, ports(network.ports_in), ports(network.ports_out))
    profile = make_profile(task.name, spec, {name: Range(size, size, size) for name, size in sizes.items()})
    plan = build_plan(
        onnx,
        folder / f"{task.name}.plan",
        target=setup.target,
        profile=profile,
        toolkit=setup.toolkit,
        name=task.name,
        options=replace(setup.options, timing_cache=None),
    )
    where, file = plan_file(plan)
    shapes = {port: ranges.opt for port, ranges in profile.items()}
    trial = Trial(name=f"{task.name}-twin", network=task.name, spec=spec, folder=str(where), file=file, shapes=shapes)
    return Case(trial, sizes, limit, _torch(network), _examples(network, sizes), twin=True)


def _compare(case: Case, truth: Truth, folder: Path, device: str) -> ParityResult:
    import torch

    fed, gave = read_arrays(folder, case.trial.name)
    values = [torch.from_numpy(gave[port.name]) for port in case.trial.spec.outputs]
    error = max(relative_error(value, true) for value, true in zip(values, truth(fed), strict=True))
    return ParityResult(case.trial.network, dict(case.sizes), rounded(error), case.limit, case.twin, device)


def _examples(network: Network, sizes: Sizes) -> Arrays:
    import torch

    examples = network.examples(sizes, torch.Generator().manual_seed(_SEED))
    return {name: tensor.numpy() for name, tensor in examples.items()}


def _torch(network: Network) -> Truth:
    """The original in torch, loaded when it is asked."""

    def truth(inputs: Arrays) -> Sequence[Any]:
        import torch

        with torch.no_grad():
            return network.reference()(**{name: torch.from_numpy(values) for name, values in inputs.items()})

    return truth


def _onnx(path: Path, network: Entry) -> Truth:
    """The ONNX network in ONNX Runtime's CPU, loaded when it is asked."""

    def truth(inputs: Arrays) -> Sequence[Any]:
        import onnx
        import torch

        proto = onnx.load(path, load_external_data=False)
        session = onnx_session(proto, path.parent, network.compute, threads=0)
        names = [port.name for port in network.outputs]
        return [torch.from_numpy(values) for values in session.run(names, dict(inputs))]

    return truth


def _dims(spec: Entry, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes of the symbolic dimensions of a network's inputs."""
    pairs = (pair for port in spec.inputs for pair in zip(port.shape, shapes[port.name], strict=True))
    return {name: size for name, size in pairs if isinstance(name, str)}


def _called(result: ParityResult) -> str:
    return f"{result.network}'s twin" if result.twin else result.network


def _engine(manifest: Manifest) -> Engine:
    if manifest.engine is None:
        raise ParityError(f"{manifest.model} for {manifest.target} has no plans that could be run")
    return manifest.engine
