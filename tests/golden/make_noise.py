"""Write tests/golden/noise.json: ``python -m tests.golden.make_noise``.

A plain-integer Philox and mpmath at 40 digits, element by element from the definition in ``foundation/noise.py``, share
nothing with the vectorised implementation. Values are the float32 results, written as the shortest decimals that
float64 reads back to them, so that any language's JSON reader gets them exactly.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mpmath as mp

from foundation.files import atomic_file

PATH = Path(__file__).parent / "noise.json"
SEEDS = (0, 1, 7, 42, 2**32 - 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1)
INDICES = (*range(32), 255, 256, 65_535, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12_345)
MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(right >> 32) ^ c[1] ^ k[0], right & MASK, (left >> 32) ^ c[3] ^ k[1], left & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c[0], c[1], c[2], c[3]


def element(seed: int, index: int) -> float:
    """One noise value, as the float64 that equals the float32."""
    r = philox((index & MASK, index >> 32, 0, 0), (seed & MASK, seed >> 32))
    # float() rounds the sum to float64 as the definition says
    u1 = mp.mpf(float(((r[0] | r[1] << 32) >> 11) + mp.mpf("0.5"))) * mp.mpf(2) ** -53
    u2 = mp.mpf(float(((r[2] | r[3] << 32) >> 11) + mp.mpf("0.5"))) * mp.mpf(2) ** -53
    z = mp.sqrt(-2 * mp.log(u1)) * mp.cos(2 * mp.pi * u2)
    return float(struct.unpack("<f", struct.pack("<f", float(z)))[0])


def document() -> dict[str, Any]:
    """The whole file."""
    mp.mp.dps = 40
    cases = [{"seed": str(seed), "values": [element(seed, index) for index in INDICES]} for seed in SEEDS]
    return {"indices": [str(index) for index in INDICES], "cases": cases}


if __name__ == "__main__":
    with atomic_file(PATH) as temporary:
        temporary.write_text(json.dumps(document(), indent=1) + "\n", encoding="utf-8")
