"""LoRA factors that do not fit together, told from their shapes: what is wrong with them in words."""

from __future__ import annotations

_WANTED = "A must be [rank, inputs] and B [outputs, rank]"


def factor_fault(a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...] | None = None) -> str | None:
    """What is wrong with factors of shapes ``a`` and ``b`` in themselves, and what they must be; None if nothing is.

    weight: [outputs, inputs] of the layer, where it is known: without it, square factors are not doubted. Factors that
    make a weight of another shape are no fault of theirs (None): they belong to another base.
    """
    if len(a) != 2 or len(b) != 2:
        return f"are no two matrices; {_WANTED}"
    if weight is not None and (a, b) == ((a[0], weight[1]), (weight[0], a[0])):
        return None
    turned = a[1] == b[0] and a[1] < min(a[0], b[1])
    if turned and (weight is None or sorted((a[0], b[1])) == sorted(weight)) and (weight or a[0] != b[1]):
        return f"are swapped or transposed; {_WANTED}"
    if a[0] != b[1]:
        return f"differ in rank ({a[0]} and {b[1]}); {_WANTED}"
    return None
