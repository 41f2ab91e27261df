"""Which linears FP8 quantises: the network's own list, less what is kept high. Names only; nothing is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from export.errors import ExportError

_WEIGHT = ".weight"
_LISTED = 3


def layer_of(weight: str) -> str:
    """The layer of a weight, by state-dict name: ``a.to_q.weight`` -> ``a.to_q``."""
    return weight.removesuffix(_WEIGHT)


def weight_of(layer: str) -> str:
    """The weight of a layer: ``a.to_q`` -> ``a.to_q.weight``."""
    return layer + _WEIGHT


def block_of(layer: str) -> str:
    """The block of a layer: up to the first number in its name (``a.3.attn.to_q`` -> ``a.3``), else its first part."""
    parts = layer.split(".")
    end = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: end + 1])


def select_weights(names: Iterable[str], defaults: Sequence[str], keep_high: Sequence[str] = ()) -> tuple[str, ...]:
    """The weights that are only stored in FP8: those that match a default pattern and none of ``keep_high``.

    Names may have parts in front that the patterns lack (``model.layers.0`` for ``layers.0``); the defaults may match
    nothing. Raises ExportError where a pattern of ``keep_high`` matches nothing.
    """
    chosen = [name for name in names if any(_ends(name, pattern) for pattern in defaults)]
    _check_used(keep_high, chosen, _ends)
    return tuple(name for name in chosen if not any(_ends(name, pattern) for pattern in keep_high))


def own_patterns(network: str, keep_high: Sequence[str]) -> tuple[str, ...]:
    """What of ``keep_high`` is for a network that is named in front: ``t5`` all of it, ``t5.PATTERN`` some."""
    found = (pattern.partition(".") for pattern in keep_high)
    return tuple(rest or "*" for name, _, rest in found if name == network)


def select_layers(names: Iterable[str], defaults: Sequence[str], keep_high: Sequence[str] = ()) -> tuple[str, ...]:
    """The weights that are quantised: those of ``names`` that match a default pattern and none of ``keep_high``.

    names: weights of the graph by state-dict name; defaults: fnmatch patterns of weight names (``Network.fp8_layers``);
    keep_high: fnmatch patterns of weight or layer names. The order of ``names`` is kept. Raises ExportError where the
    defaults or a pattern of ``keep_high`` match nothing, and where nothing is left.
    """
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in defaults)]
    if not chosen:
        raise ExportError(f"fp8 finds no layer to quantise: nothing matches {', '.join(defaults) or 'an empty list'}")
    _check_used(keep_high, chosen, _matches)
    kept = tuple(name for name in chosen if not any(_matches(name, pattern) for pattern in keep_high))
    if not kept:
        raise ExportError(
            "--keep-high leaves no layer to quantise; use --precision bf16 instead, or a narrower pattern"
        )
    return kept


def _check_used(keep_high: Sequence[str], chosen: Sequence[str], matches: Callable[[str, str], bool]) -> None:
    """Raise ExportError where a pattern matches none of the weights that fp8 takes."""
    for pattern in keep_high:
        if not any(matches(name, pattern) for name in chosen):
            shown = ", ".join(layer_of(name) for name in chosen[:_LISTED])
            raise ExportError(
                f"--keep-high {pattern!r} matches none of the {len(chosen)} layers that fp8 quantises "
                f"({shown}, ...); check the pattern (* and ? stand for any text and any character)"
            )


def _ends(name: str, pattern: str) -> bool:
    return _matches(name, pattern) or _matches(name, f"*.{pattern}")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(layer_of(name), pattern)
