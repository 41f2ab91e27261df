"""``arcflow-serve`` under lasting load: ``python benchmarks/serve_soak.py``.

Callers keep their connections and ask again as soon as they are answered. Every request has a seed and an id of its
own, and the image that comes back holds the seed: so a request that is lost, answered twice or answered with
another's image is found. Memory is read from /proc, after a warm-up and at the end. Prints a table, then one line of
JSON.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image

from benchmarks.serving import GENERATIONS, Server, send, serve_tiny, summed
from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from foundation.measuring import begin, percentile, shown, tell, timing

SIZES = ("64x64", "64x64", "64x64", "96x64")
"""Most requests can be joined, some cannot."""


class SoakError(ArcFlowError):
    """A request was lost, answered twice or wrongly, or memory grew."""


@dataclass
class Ledger:
    """What the callers saw: answers by seed, the seconds of each, and what was wrong."""

    answers: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 0. Raises SoakError where anything is not as it must be."""
    parser = ArgumentParser(prog="python benchmarks/serve_soak.py", description=__doc__)
    add = parser.add_argument
    add("--requests", type=int, default=2000, help="after the warm-up (default: %(default)s)")
    add("--warm-up", type=int, default=1000, help="requests before memory is read (default: %(default)s)")
    add("--connections", type=int, default=8, help="callers at once (default: %(default)s)")
    add("--growth", type=float, default=0.01, help="most that memory may grow by (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    figures = {**begin(parser.prog, argv), **soak(arguments)}
    tell(figures, rows_of(figures), path=arguments.json)
    judge(figures, arguments.growth)
    return 0


def soak(arguments: Namespace) -> dict[str, Any]:
    """Both phases, and what was measured."""
    total = arguments.warm_up + arguments.requests
    with serve_tiny() as server:
        ledger = Ledger()
        work(server, ledger, range(arguments.warm_up), arguments.connections)
        ledger.seconds.clear()
        warm, began = server.resident_bytes(), time.monotonic()
        work(server, ledger, range(arguments.warm_up, total), arguments.connections)
        wall, end = time.monotonic() - began, server.resident_bytes()
        metrics = server.metrics()
        code = server.stop()
        logged = Counter(line["request_id"] for line in server.log() if line.get("path") == GENERATIONS)
    ids = [f"soak-{seed}" for seed in range(total)]
    return {
        "model": "tiny-fp16-cpu",
        "requests": arguments.requests,
        "warm_up": arguments.warm_up,
        "connections": arguments.connections,
        "lost": sum(ledger.answers[seed] == 0 for seed in range(total)),
        "answered_twice": sum(ledger.answers[seed] > 1 or logged[ids[seed]] > 1 for seed in range(total)),
        "wrong": ledger.wrong[:10],
        "images_total": int(summed(metrics, "arcflow_images_total")),
        "mean_batch": round(summed(metrics, "arcflow_batch_size_sum") / summed(metrics, "arcflow_batch_size_count"), 3),
        "requests_per_second": round(arguments.requests / wall, 2),
        "latency": {
            **asdict(timing(ledger.seconds)),
            "p95_s": percentile(ledger.seconds, 0.95),
            "most_s": max(ledger.seconds),
        },
        "resident_mib": {"warm": round(warm / 2**20, 2), "end": round(end / 2**20, 2)},
        "growth": round(end / warm - 1, 5),
        "exit_code": code,
    }


def work(server: Server, ledger: Ledger, seeds: range, connections: int) -> None:
    """Callers who share the seeds, until all are used."""
    left = iter(seeds)
    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(caller, server, ledger, left) for _ in range(connections)]:
            done.result()


def caller(server: Server, ledger: Ledger, seeds: Iterator[int]) -> None:
    """One connection, one request at a time."""
    with contextlib.closing(server.connect()) as connection:
        for seed in seeds:
            fields = {"prompt": f"a dog {seed % 17}", "seed": seed, "size": SIZES[seed % len(SIZES)]}
            headers = {"Content-Type": "application/json", "x-request-id": f"soak-{seed}"}
            began = time.monotonic()
            try:
                answer = send(connection, "POST", GENERATIONS, json.dumps(fields).encode(), headers)
                problem = check(seed, answer.status, answer.headers, answer.body)
            except (OSError, ValueError, KeyError) as error:
                problem = f"{seed}: {error!r}"
                connection.close()
            ledger.seconds.append(time.monotonic() - began)
            if problem:
                ledger.wrong.append(problem)
            else:
                ledger.answers[seed] += 1  # Nobody else has this seed.


def check(seed: int, status: int, headers: Any, body: bytes) -> str:
    """What is wrong with an answer, or "": its id, its seed, and the seed and prompt in its image must be ours."""
    if status != 200:
        return f"{seed}: status {status}: {body[:200]!r}"
    (one,) = json.loads(body)["data"]
    with Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) as image:
        settings = json.loads(image.info["arcflow"])
        size = f"{image.width}x{image.height}"
    found = (headers.get("x-request-id"), one["seed"], settings["seed"], settings["prompt"], size)
    wanted = (f"soak-{seed}", seed, seed, f"a dog {seed % 17}", SIZES[seed % len(SIZES)])
    return "" if found == wanted else f"{seed}: {found} instead of {wanted}"


def rows_of(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as a table."""
    latency, memory = figures["latency"], figures["resident_mib"]
    times = ", ".join(f"{1e3 * latency[name]:.1f}" for name in ("median_s", "p95_s", "most_s"))
    return [
        ("requests, connections", f"{figures['requests']}, {figures['connections']}"),
        ("lost, answered twice, wrong", f"{figures['lost']}, {figures['answered_twice']}, {len(figures['wrong'])}"),
        ("requests a second, mean batch", f"{figures['requests_per_second']}, {figures['mean_batch']}"),
        ("latency: median, p95, most", f"{times} ms"),
        ("memory: warm, end, growth", f"{memory['warm']}, {memory['end']} MiB, {100 * figures['growth']:.2f} %"),
        ("machine", shown(figures["machine"])),
    ]


def judge(figures: dict[str, Any], growth: float) -> None:
    """Raise SoakError unless all is as it must be."""
    total = figures["requests"] + figures["warm_up"]
    if figures["lost"] or figures["answered_twice"] or figures["wrong"]:
        raise SoakError(f"requests were lost, answered twice or wrongly: {figures['wrong']}")
    if figures["images_total"] != total or figures["exit_code"] != 0:
        raise SoakError(f"{figures['images_total']} images of {total}, exit code {figures['exit_code']}")
    if figures["growth"] >= growth:
        raise SoakError(f"memory grew by {100 * figures['growth']:.2f} %; less than {100 * growth:g} % is allowed")


if __name__ == "__main__":
    sys.exit(run(main))
