"""Which of the two flavours of TensorRT builds for a target on this machine; :mod:`engines.tensorrt` loads it."""

from __future__ import annotations

from engines.errors import FlavourError
from engines.machine import this_machine
from engines.schema import SOURCE_TARGET
from engines.tensorrt import DATA_CENTRE, INSTALL, RTX, Toolkit, installed, load
from export.tensorrt.targets import TARGETS, Target

__all__ = ["Toolkit", "choose_flavour", "installed", "load", "local_capabilities", "own_target"]


def local_capabilities() -> tuple[str, ...]:
    """The compute capability of each GPU here, in the driver's order ("sm89"); empty without a driver or a GPU."""
    return this_machine().gpus


def own_target(wanted: str | None = None) -> tuple[str, str]:
    """The target of this machine, and why it is that, for the terminal.

    It is that of the first GPU here that plans can be built for, by the flavour ``wanted`` or by any that is installed;
    where there is none it is "onnx", from which plans are built elsewhere.
    """
    machine, reasons = this_machine(), []
    for capability, name in zip(machine.gpus, machine.names, strict=True):
        if capability not in TARGETS:
            reasons.append(f"no plans are built for {capability}, which {name} is")
            continue
        try:
            choose_flavour(TARGETS[capability], wanted)
        except FlavourError as error:
            reasons.append(f"no plans can be built here for {name}: {error}")
        else:
            return capability, f"the GPU of this machine, {name}"
    elsewhere = (
        "no GPU is here; name the one to build plans for (--target rtx), or build them from the bundle where it is"
    )
    return SOURCE_TARGET, "; ".join(reasons) or elsewhere


def choose_flavour(target: Target, wanted: str | None = None) -> str:
    """The flavour that builds for ``target`` on this machine; ``wanted`` forces one.

    Where both could, it is the data-centre flavour if a GPU of that target is here to tune on, else RTX.
    Raises FlavourError: with the install command, or because a data-centre build lacks its GPU.
    """
    here = installed()
    if wanted is not None and wanted not in target.flavours:
        raise FlavourError(
            f"--flavour {wanted} does not build for {target.name}; allowed there: {', '.join(target.flavours)}"
        )
    candidates = [wanted] if wanted is not None else list(target.flavours)
    present = [flavour for flavour in candidates if flavour in here]
    if not present:
        commands = ", or ".join(INSTALL[flavour] for flavour in candidates)
        raise FlavourError(f"--target {target.name} needs {' or '.join(candidates)}, not installed here: {commands}")
    has_gpu = set(target.capabilities) <= set(local_capabilities())
    if has_gpu and DATA_CENTRE in present:
        return DATA_CENTRE
    if RTX in present:
        return RTX
    gpus = ", ".join(local_capabilities()) or "none"
    raise FlavourError(
        f"{DATA_CENTRE} builds on the GPU that will run the plan: --target {target.name} needs one of "
        f"{', '.join(target.capabilities)} here, this machine has {gpus}; build on such a machine"
        + (f", or {INSTALL[RTX]}" if RTX in target.flavours else "")
    )
