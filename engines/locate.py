"""Finding a bundle by model, precision and target."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from engines.errors import BundleNotFoundError
from engines.names import BundleName, parse_name

ENVIRONMENT = "ARCFLOW_ENGINES"
"""Environment variable with more folders of bundles (separated as in PATH); they come before the built-in one."""

BUILT_IN = Path(__file__).resolve().parent / "bundles"

_PREFERRED_TARGET = "cpu"
_PREFERRED_PRECISION = "fp32"


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

    Where precision or target are left open, the CPU target and fp32 come first, then alphabetical order.
    Raises BundleNotFoundError, which lists what there is.
    """
    bundles = available(roots)
    matches = [
        name
        for name in bundles
        if name.model == model and precision in (None, name.precision) and target in (None, name.target)
    ]
    if not matches:
        wanted = " ".join(part for part in (model, precision, target) if part)
        listing = ", ".join(map(str, sorted(bundles))) or "none"
        command = f"python -m export.build --model {model}"
        command += f" --precision {precision or _PREFERRED_PRECISION} --target {target or _PREFERRED_TARGET}"
        raise BundleNotFoundError(f"no bundle for {wanted!r}; available: {listing}; to make it, run: {command}")
    return bundles[min(matches, key=_preference)]


def _preference(name: BundleName) -> tuple[bool, bool, BundleName]:
    return (name.target != _PREFERRED_TARGET, name.precision != _PREFERRED_PRECISION, name)
