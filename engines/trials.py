"""Plans that are to be run once on a GPU, as ``export``, which builds them, asks ``runtime``, which runs them.

The two do not import each other. What is asked lies in a folder as ``trials.json``, and arrays in files of that
folder, by port: a plan's inputs (where there are none, they are made) and what it gave. Plans are code here as
everywhere: the file is sealed with this machine's key.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from engines.errors import BundleError, TrustError
from engines.schema import Capability, Count, FileEntry, Flavour, Name, Network, Seal
from engines.trust import seal
from foundation.files import atomic_file

_NAME = "trials.json"


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One plan. name: for its arrays and for people; network: whose ports ``spec`` has; shapes: of each input.

    folder, file: where the plan lies, and what it must be.
    """

    name: Name
    network: Name
    spec: Network
    folder: str
    file: FileEntry
    shapes: Mapping[str, Sequence[Count]]


class Trials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked. source: the folder of the bundle whose tokenizers and schedule inputs are made by, "" for none."""

    flavour: Flavour
    compute_capabilities: Sequence[Capability]
    trials: Sequence[Trial]
    source: str = ""
    seal: Seal = ""


class Ran(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that ran. shapes: of its inputs; nonfinite: of each output that has any, how many values are not finite,
    and how many there are in all."""

    name: str
    shapes: Mapping[str, Sequence[int]]
    nonfinite: Mapping[str, tuple[int, int]]

    @property
    def fault(self) -> str:
        """What is wrong with what it gave, in half a sentence; "" where every value is finite."""
        counts = ", ".join(f"{bad:,} of {count:,} of {port}" for port, (bad, count) in self.nonfinite.items())
        return f"the plan of {self.name} gives values that are not finite ({counts})" if counts else ""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of it. device: the GPU's name."""

    device: str
    ran: Sequence[Ran]


def inputs_file(name: str) -> str:
    """In the folder: what the plan of that trial is fed."""
    return f"{name}.in.npz"


def outputs_file(name: str) -> str:
    """In the folder: what it gave."""
    return f"{name}.out.npz"


def is_asked(folder: Path) -> bool:
    """Whether there are trials in the folder."""
    return (folder / _NAME).is_file()


def write_trials(folder: Path, trials: Trials) -> None:
    """Write ``trials.json``, sealed. Raises TrustError, ArcFlowError."""
    complete = msgspec.structs.replace(trials, seal=seal(_digests(trials)))
    with atomic_file(folder / _NAME) as temporary:
        temporary.write_bytes(msgspec.json.encode(complete))


def read_trials(folder: Path) -> Trials:
    """Raises BundleError where it is damaged, TrustError where this machine did not write it."""
    path = folder / _NAME
    try:
        trials = msgspec.json.decode(path.read_bytes(), type=Trials)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}; it is written by python -m export.build") from error
    if not hmac.compare_digest(trials.seal, seal(_digests(trials))):
        raise TrustError(f"the plans of {path} were not put there by this machine; build them here")
    return trials


def _digests(trials: Trials) -> dict[str, str]:
    return {f"trial {trial.name}": trial.file.sha256 for trial in trials.trials}
