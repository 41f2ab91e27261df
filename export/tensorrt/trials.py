"""Plans run once on this machine's GPU: by ``runtime``, in a process of its own (:mod:`engines.trials`)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.trials import Answer, Trials, inputs_file, outputs_file, write_trials
from export.errors import EngineError
from export.tensorrt.flavours import local_capabilities
from foundation.processes import hand_over

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from engines.schema import ParityResult

Arrays = Mapping[str, "NDArray[Any]"]
"""By port."""


class NotRunError(EngineError):
    """Plans could not be run here, which says nothing against them."""


def if_here(
    capabilities: Sequence[str], measured: Callable[[], Sequence[ParityResult]]
) -> tuple[Sequence[ParityResult], str]:
    """What is measured of plans for these GPUs, and "" for why not; where plans cannot be run here, the reason."""
    here = local_capabilities()
    if not set(capabilities) & set(here):
        return (), f"no GPU of {' or '.join(capabilities)} is here{', only ' if here else ''}{', '.join(here)}"
    try:
        return measured(), ""
    except NotRunError as error:
        return (), str(error)


def not_measured(reason: str, out: Path, source: Path | None = None) -> str:
    """What is said of a bundle whose plans were not run, and what does it. source: the ONNX that it was built from."""
    command = f"python -m engines.verify {out} --run"
    if source is None:
        against = "; with --against ONNX, the bundle of the same build for --target onnx, they are held to it"
    else:
        against = f" --against {source}"
    return f"parity on the GPU was not measured: {reason}. To run the plans there: {command}{against}"


def run_trials(folder: Path, trials: Trials, inputs: Mapping[str, Arrays]) -> Answer:
    """Run plans once each; ``folder`` then holds what each was fed and gave (:func:`read_arrays`).

    inputs: of those trials whose inputs are not to be made. Raises NotRunError where they cannot be run: why.
    """
    import numpy as np

    write_trials(folder, trials)
    for name, arrays in inputs.items():
        np.savez(folder / inputs_file(name), **arrays)  # type: ignore[arg-type]
    done = hand_over("runtime.verify", folder, output=subprocess.PIPE)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("error: ") if said else f"the process that ran them ended with {done.returncode}"
        raise NotRunError(reason)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Answer)


def read_arrays(folder: Path, name: str) -> tuple[Arrays, Arrays]:
    """What a plan was fed and what it gave, by port."""
    import numpy as np

    with np.load(folder / inputs_file(name)) as fed, np.load(folder / outputs_file(name)) as gave:
        return dict(fed), dict(gave)
