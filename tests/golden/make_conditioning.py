"""Write tests/golden/conditioning.json: ``python -m tests.golden.make_conditioning``.

Noise levels and guidances as backbones saw them that were trained in bfloat16. The values come from rounding exact
fractions, straight from the definition: FLUX rounds to bfloat16, multiplies by 1000 and rounds again (given here over
1000, as float32: what the port is fed), Qwen-Image rounds once.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

from foundation.files import atomic_file

PATH = Path(__file__).parent / "conditioning.json"
FLOAT32_BITS, BFLOAT16_BITS = 24, 8


def rounded(value: Fraction, bits: int) -> Fraction:
    """The nearest number with so many significant bits, ties to even."""
    if not value:
        return value
    unit = Fraction(1)
    while value / unit >= 2**bits:
        unit *= 2
    while value / unit < 2 ** (bits - 1):
        unit /= 2
    return round(value / unit) * unit


def entry(value: float) -> dict[str, float]:
    given = rounded(Fraction(value), FLOAT32_BITS)
    once = rounded(given, BFLOAT16_BITS)
    fed = rounded(rounded(once * 1000, BFLOAT16_BITS) / 1000, FLOAT32_BITS)
    return {"value": float(given), "flux": float(fed), "qwen": float(once)}


def main() -> None:
    draw = random.Random(1)
    levels = [3.2 * t / (1 + 2.2 * t) for n in (1, 2, 3, 4, 8) for t in (1 - i / n for i in range(n))]
    guidances = [0.0, 1.0, 2.0, 3.5, 4.0, 7.25]
    ties = [0.501953125, 0.505859375]  # halfway between two bfloat16, one down and one up to the even one
    values = [*levels, *guidances, *ties, *(draw.random() for _ in range(200))]
    with atomic_file(PATH) as temporary:
        temporary.write_text(json.dumps([entry(value) for value in values], separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
