"""The run behind a calibration: the student generates prompts while every linear's inputs are observed.

What was observed is written aside as the run goes on, so that one that was stopped resumes where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from export.errors import CalibrationError
from export.folders.keys import versions
from export.fp8.attention import SIDES, Watch, watched
from export.fp8.calibration import Calibration, Prompts
from export.fp8.numbers import round_up
from export.fp8.observers import Method, Observer, Record
from export.networks.base import INNER, Network
from export.networks.streaming import Placement, open_module
from export.reporting import Count, silent
from export.students.prompts import Prompted
from export.students.rollout import noises, rollout
from export.weights.parents import Parents
from foundation.files import atomic_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SAVE_SECONDS = 20.0
"""Least time between two writes of the state."""

_TOOLS = ("torch", "diffusers", "transformers")
_STATE_FORMAT = 2
_DIGITS = 5


@dataclass(frozen=True)
class Run:
    """What is measured, and how.

    backbone: the student's; student: what it is merged from; sigmas: noise levels, 1 first and 0 last; prompts: texts;
    width, height: in pixels; percentile: for that method; dtype, device, placement: how the backbone runs;
    batch: prompts a call.
    """

    backbone: Network
    student: Parents
    sigmas: tuple[float, ...]
    prompts: tuple[str, ...]
    width: int
    height: int
    method: Method
    percentile: float
    dtype: torch.dtype
    device: torch.device
    placement: Placement
    batch: int

    @property
    def key(self) -> str:
        """Digest of all that what is observed depends on (not of how a bound is then chosen)."""
        facts = [
            _STATE_FORMAT, self.student.digest, self.sigmas, self.prompts, self.width, self.height, str(self.dtype),
            self.method is not Method.AMAX, versions(_TOOLS),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file aside: prompts done, and the observers."""

    done: int
    layers: dict[str, Record]
    attention: dict[str, Record]


def measure(run: Run, prompted: Prompted, folder: Path, report: Count = silent) -> Calibration:
    """Generate every prompt and return what was seen. folder: keeps the state of the run, which is removed at the end.

    Raises CalibrationError where an input is not finite, WeightsError where the student lacks a tensor.
    """
    module = open_module(run.backbone, run.dtype, run.device, run.placement)
    backbone: nn.Module = getattr(module, INNER)
    state = folder / f"calibrate-{run.key}.json"
    done, observers, watch = _resume(state, backbone)
    total, saved, histogram = len(run.prompts), time.monotonic(), run.method is not Method.AMAX
    layers = len(observers) * (len(run.sigmas) - 1)  # of each prompt: a batch of a streamed student takes many minutes
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        report(min(done * layers + run.batch * looks, total * layers), total * layers)

    tell = look if run.placement is Placement.STREAM else None
    with observed(backbone, observers, histogram, tell), watched(watch, histogram):
        while done < total:
            looks = 0
            if tell is None:
                report(done, total)
            rows = slice(done, min(done + run.batch, total))
            _generate(module, run, prompted, rows, watch)
            done = rows.stop
            if done < total and time.monotonic() - saved >= SAVE_SECONDS:
                _save(state, done, observers, watch)
                saved = time.monotonic()
    report(total, total)
    calibration = _conclude(run, observers, watch)
    state.unlink(missing_ok=True)
    return calibration


@contextmanager
def observed(
    backbone: nn.Module, observers: dict[str, Observer], histogram: bool, tell: Callable[[], None] | None = None
) -> Iterator[None]:
    """In the block, every linear named in ``observers`` shows its input to its observer. tell: called for each.

    Raises CalibrationError, which names the layer, where an input is not finite.
    """
    seen: list[Any] = [None, None]  # The last tensor and what was made of it: queries, keys and values share theirs.

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if seen[0] is not inputs[0]:
                fresh = Observer()
                try:
                    fresh.see(inputs[0], histogram)
                except CalibrationError as error:
                    raise CalibrationError(f"{name}: {error}") from error
                seen[:] = [inputs[0], fresh]
            observers[name].add(seen[1])
            if tell is not None:
                tell()

        return look

    handles = [backbone.get_submodule(name).register_forward_pre_hook(hook(name)) for name in observers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def linears(backbone: nn.Module) -> tuple[str, ...]:
    """Names of all linears of a backbone, in its order."""
    from torch import nn

    return tuple(name for name, module in backbone.named_modules() if isinstance(module, nn.Linear))


def prompts_digest(prompts: Sequence[str]) -> str:
    """sha256 of the prompts, one a line."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def _generate(module: Any, run: Run, prompted: Prompted, rows: slice, watch: Watch) -> None:
    channels = run.backbone.ports_in["hidden_states"][1][-1]
    if not isinstance(channels, int):
        raise CalibrationError("the backbone's packed channels are not a number; this is a fault of its description")
    tokens = prompted.rows * prompted.columns
    noise = noises(range(rows.start, rows.stop), tokens, channels)
    ports = {name: tensor.to(run.device) for name, tensor in prompted.ports(rows).items()}

    def evaluate(**inputs: Tensor) -> Sequence[Tensor]:
        watch.restart()
        field: Sequence[Tensor] = module(**inputs)
        return field

    rollout(prompted.calling(evaluate), noise.to(run.device), ports, run.sigmas)


def _resume(state: Path, backbone: nn.Module) -> tuple[int, dict[str, Observer], Watch]:
    names = linears(backbone)
    try:
        found = msgspec.json.decode(state.read_bytes(), type=_State)
        if set(found.layers) == set(names):
            watch = Watch({name: Observer.from_record(record) for name, record in found.attention.items()})
            return found.done, {name: Observer.from_record(found.layers[name]) for name in names}, watch
    except (OSError, msgspec.MsgspecError, IndexError):
        pass  # A state that is missing or damaged means only that the run starts anew.
    return 0, {name: Observer() for name in names}, Watch()


def _save(state: Path, done: int, observers: dict[str, Observer], watch: Watch) -> None:
    layers, attention = (
        {name: observer.to_record() for name, observer in group.items()} for group in (observers, watch.observers)
    )
    data = _State(done, layers, attention)
    with atomic_file(state) as temporary:
        temporary.write_bytes(msgspec.json.encode(data))


def _conclude(run: Run, observers: dict[str, Observer], watch: Watch) -> Calibration:
    def bound(observer: Observer) -> float:
        return round_up(observer.bound(run.method, run.percentile), _DIGITS)

    seen = {name: observer for name, observer in observers.items() if observer.values}
    levels = tuple(a for a, _ in itertools.pairwise(run.sigmas))
    return Calibration(
        student=run.student.digest,
        parents=run.student,
        method=run.method,
        percentile=run.percentile if run.method is Method.PERCENTILE else None,
        sigmas=levels,
        prompts=Prompts(len(run.prompts), prompts_digest(run.prompts), run.width, run.height),
        synthetic=False,
        amax={name: bound(observer) for name, observer in sorted(seen.items())},
        tools=versions(_TOOLS),
        attention=tuple(
            (
                bound(watch.observers[f"{i}.query"]),
                bound(watch.observers[f"{i}.key"]),
                bound(watch.observers[f"{i}.value"]),
            )
            for i in range(len(watch.observers) // len(SIDES))
        ),
    )
