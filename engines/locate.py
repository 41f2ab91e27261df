"""How a bundle is called, ``<model>-<precision>-<target>``, and finding one by these parts.

Bundles are looked for in the folders of $ARCFLOW_ENGINES, then in the package's own; of equal names the first counts.
Where precision or target are left open, this decides, by name alone:

1. target: ``cpu``, which runs anywhere; then GPUs, the newer first; then ``rtx``; last ``onnx``, from which plans are
   built and which nothing runs;
2. precision: on the CPU ``fp32``, ``fp16``, ``fp8``, the exact before the small; on a GPU ``bf16``, ``fp16``, ``fp8``,
   ``fp32``: what the model was trained in first;
3. alphabetical order.

A target that was asked for is taken literally, but for ``rtx``, whose plans also serve each GPU they are for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.checks import capabilities
from engines.errors import BundleNotFoundError

ENVIRONMENT = "ARCFLOW_ENGINES"
"""Environment variable with more folders of bundles (separated as in PATH); they come before the built-in one."""

BUILT_IN = Path(__file__).resolve().parent / "bundles"

EMBEDDED = "tiny"
"""The model that is small enough for any CPU; others take tens of gigabytes there."""

_TARGETS = ("cpu", "sm120", "sm100", "sm90", "sm89", "sm86", "sm80", "rtx", "onnx")
_CPU_PRECISIONS = ("fp32", "fp16", "fp8")
_GPU_PRECISIONS = ("bf16", "fp16", "fp8", "fp32")
_WITHOUT_FP8 = ("sm80", "sm86")

_NAME = re.compile(r"(?P<model>[a-z0-9][a-z0-9._-]*)-(?P<precision>[a-z0-9]+)-(?P<target>[a-z0-9_]+)")


@dataclass(frozen=True, order=True)
class BundleName:
    """Model, precision and target of a bundle; ``str()`` gives the folder's name."""

    model: str
    precision: str
    target: str

    def __str__(self) -> str:
        return f"{self.model}-{self.precision}-{self.target}"


def parse_name(folder: str) -> BundleName | None:
    """The parts of a bundle folder's name, or None where it is not one. The model alone may hold dashes."""
    match = _NAME.fullmatch(folder)
    return BundleName(**match.groupdict()) if match else None


def rebuild_hint(folder: str) -> str:
    """The command that makes the bundle of that folder name anew, as the end of an error message."""
    name = parse_name(folder)
    if name is None:
        return "build it again with: python -m export.build"
    return f"run: python -m export.build --model {name.model} --precision {name.precision} --target {name.target}"


def default_roots() -> tuple[Path, ...]:
    """Folders in which bundles are looked for, first match first: those of $ARCFLOW_ENGINES, then the package's own."""
    extra = os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    return (*(Path(folder) for folder in extra if folder), BUILT_IN)


def available(roots: Iterable[Path] | None = None) -> dict[BundleName, Path]:
    """Every bundle under ``roots`` (default: :func:`default_roots`) by name; of equal names the first root's."""
    found: dict[BundleName, Path] = {}
    for root in default_roots() if roots is None else roots:
        try:
            folders = sorted(path for path in root.iterdir() if path.is_dir())
        except OSError:  # A root that is missing or closed to us holds no bundle for us.
            continue
        for folder in folders:
            name = parse_name(folder.name)
            if name is not None:
                found.setdefault(name, folder)
    return found


def locate(
    model: str, precision: str | None = None, target: str | None = None, roots: Sequence[Path] | None = None
) -> Path:
    """The folder of the bundle of ``model``; its content is not looked at.

    Where precision or target are left open, the order in the module's docstring decides.
    Raises BundleNotFoundError, which lists what there is.
    """
    bundles = available(roots)
    matches = [
        name
        for name in bundles
        if name.model == model and precision in (None, name.precision) and (target is None or serves(name, target))
    ]
    if not matches:
        wanted = " ".join(part for part in (model, precision, target) if part)
        listing = ", ".join(map(str, sorted(bundles))) or "none"
        command = _command(model, precision, target)
        raise BundleNotFoundError(f"no bundle for {wanted!r}; available: {listing}; to make it, run: {command}")
    return bundles[min(matches, key=_preference)]


def find(name: str, roots: Sequence[Path] | None = None) -> Path:
    """The folder of the bundle called ``name``: in full ("tiny-fp16-cpu"), or by its model alone. As :func:`locate`."""
    whole = parse_name(name)
    bundles = available(roots)
    return bundles[whole] if whole is not None and whole in bundles else locate(name, roots=roots)


def serves(name: BundleName, target: str) -> bool:
    """Whether the bundle of that name is one for ``target``: the same, or a GPU among those of its plans."""
    return target == name.target or target in capabilities(name.target)


def _command(model: str, precision: str | None, target: str | None) -> str:
    """What makes that bundle. What was left open: the GPU that is there; FP8 where it has it, fp16 on a CPU."""
    there = target or (_TARGETS[0] if model == EMBEDDED else "")
    usual = "fp16" if there == _TARGETS[0] else "bf16" if there in _WITHOUT_FP8 else "fp8"
    rest = f" --target {there}" if there else " (where the GPU is; RTX 30 cards and the A100 take bf16)"
    return f"python -m export.build --model {model} --precision {precision or usual}{rest}"


def _preference(name: BundleName) -> tuple[int, int, BundleName]:
    precisions = _CPU_PRECISIONS if name.target == _TARGETS[0] else _GPU_PRECISIONS
    return (_place(name.target, _TARGETS), _place(name.precision, precisions), name)


def _place(value: str, order: Sequence[str]) -> int:
    return order.index(value) if value in order else len(order)
