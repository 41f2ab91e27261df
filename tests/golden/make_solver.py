"""Write tests/golden/solver.json: ``python -m tests.golden.make_solver``.

The values come from mpmath at 50 digits, straight from the definitions (the displacement is a numerical quadrature of
the velocity, not the closed form), and are rounded to float64. Every implementation of the solver is held to them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mpmath as mp

from foundation.files import atomic_file

PATH = Path(__file__).parent / "solver.json"
POSITIONS = 4


def schedule(nfe: int, shift: str, ratio: str) -> dict[str, Any]:
    s, r = mp.mpf(shift), mp.mpf(ratio)
    base = 1 / (nfe - 1 + r)
    times = [1 - i * base for i in range(nfe)] + [mp.mpf(0)]
    levels = [s * t / (1 + (s - 1) * t) for t in times]
    return {"nfe": nfe, "shift": float(s), "final_step_ratio": float(r), "sigmas": [float(x) for x in levels]}


def phi1(z: str) -> dict[str, float]:
    # float(z) is what every implementation is given, so the value belongs to it and not to the decimal text
    x = mp.mpf(float(z))
    return {"z": float(z), "value": float(mp.expm1(x) / x) if x else 1.0}


def case(
    name: str, seed: int, levels: tuple[float, float, float], modes: int, channels: int, spread: float,
    batch: int = 1, tokens: int = 2,
) -> dict[str, Any]:  # fmt: skip
    rng = random.Random(seed)
    src, a, b = levels

    def draw(*shape: int, scale: float = 1.0) -> Any:
        if not shape:
            return rng.gauss(0.0, scale)
        return [draw(*shape[1:], scale=scale) for _ in range(shape[0])]

    means, x_a = draw(batch, tokens, modes, channels), draw(batch, tokens, channels)
    logits = draw(batch, tokens, modes, POSITIONS)
    loggammas = draw(batch, tokens, modes - 1, POSITIONS, scale=spread)
    logweights = [[normalise(token) for token in row] for row in logits]

    def entry(n: int, t: int, c: int, what: str) -> float:
        p = c % POSITIONS

        def u(sigma: Any) -> Any:
            total = mp.mpf(0)
            for k in range(modes):
                log = mp.mpf(loggammas[n][t][k - 1][p]) if k else mp.mpf(0)
                weight = mp.exp(mp.mpf(logweights[n][t][k][p]))
                total += weight * mp.mpf(means[n][t][k][c]) * mp.exp(log * (mp.mpf(src) - sigma))
            return total

        if what == "velocity":
            return float(u(mp.mpf(b)))
        return float(mp.mpf(x_a[n][t][c]) - mp.quad(u, [mp.mpf(b), mp.mpf(a)]))

    def table(what: str) -> Any:
        return [[[entry(n, t, c, what) for c in range(channels)] for t in range(tokens)] for n in range(batch)]

    return {
        "name": name,
        "shape": {"batch": batch, "tokens": tokens, "modes": modes, "channels": channels, "positions": POSITIONS},
        "sigma_src": src,
        "sigma_a": a,
        "sigma_b": b,
        "x_a": x_a,
        "means": means,
        "logweights": logweights,
        "loggammas": loggammas,
        "x_b": table("state"),
        "velocity_at_b": table("velocity"),
    }


def normalise(logits: list[list[float]]) -> list[list[float]]:
    """log-softmax over the modes for every patch position, [K][P]."""
    columns = []
    for column in zip(*logits, strict=True):
        total = mp.log(mp.fsum(mp.exp(mp.mpf(x)) for x in column))
        columns.append([float(mp.mpf(x) - total) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def main() -> None:
    mp.mp.dps = 50
    second = 3.2 * 0.5 / (1 + 2.2 * 0.5)
    document = {
        "cases": [
            case("first of two steps, flux", 1, (1.0, 1.0, second), 16, 8, 1.0),
            case("second of two steps, flux", 2, (second, second, 0.0), 16, 8, 1.0),
            case("inside a segment", 3, (0.9, 0.7, 0.2), 4, 8, 1.0, batch=2),
            case("one mode is Euler", 4, (1.0, 1.0, 0.4), 1, 8, 1.0),
            case("gammas next to one", 5, (1.0, 0.8, 0.1), 4, 8, 1e-9),
            case("gammas near one", 6, (1.0, 0.9, 0.3), 4, 8, 1e-3),
            case("wide gammas", 7, (1.0, 1.0, 0.0), 4, 8, 6.0),
            case("no distance", 8, (0.8, 0.5, 0.5), 4, 8, 1.0),
            case("short distance", 9, (0.8, 0.500001, 0.5), 4, 8, 1.0),
        ],
        "schedules": [
            schedule(nfe, shift, ratio)
            for nfe in (1, 2, 3, 4, 8)
            for shift in ("3.2", "1.7", "1", "0.5")
            for ratio in ("1", "0.5", "2")
        ],
        "phi1": [
            phi1(z)
            for z in (
                "0", "1e-300", "-1e-300", "1e-12", "-1e-12", "1e-6", "-1e-6", "1e-4", "-1e-4", "0.01", "-0.01", "0.3",
                "-0.3", "0.4999999", "-0.4999999", "0.5", "-0.5", "0.6", "-0.6", "1", "-1", "3", "-3", "10", "-10",
                "40", "-40",
            )
        ],
    }  # fmt: skip
    with atomic_file(PATH) as temporary:
        temporary.write_text(json.dumps(document, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
