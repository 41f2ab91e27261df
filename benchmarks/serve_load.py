"""``arcflow-serve`` asked for more than it can do: ``python benchmarks/serve_load.py``.

Callers who ask again when they are answered find the server's capacity. Then requests arrive at random (Poisson) at a
share of it, whether or not earlier ones are answered, each on a connection of its own. Latency counts from the moment
at which a request was due, not from that at which it was sent, so that a late client hides nothing; how late it was is
told. Goodput is what is answered with an image within ``--timeout``, a second. Two kinds of requests: "usual" ones, of
which a full queue is done within the timeout, and "long" ones, of which it is not. The server has one core, the client
the other. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.serving import GENERATIONS, PROGRAM, serve_tiny
from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from foundation.measuring import begin, percentile, shown, tell

KINDS: dict[str, tuple[int, dict[str, Any]]] = {"usual": (32, {}), "long": (4, {"nfe": 64})}
"""Callers that find the capacity, and fields of a request beside its prompt, by kind of requests."""
RATES = (0.5, 1.0, 2.0)
ACCEPTED = (200, 504)
"""Statuses of requests that the server took: with an image, or not in time after all."""
PATIENCE = 30.0
"""Seconds after which a request counts as not answered."""
KEPT = 0.9
"""Share of the best goodput that must be left under the most load."""
PUNCTUAL = 0.1
"""Share of the timeout by which the client may be late (99th percentile)."""


class LoadError(ArcFlowError):
    """The server did less under load, answered late or not at all; or the client could not keep its schedule."""


@dataclass(frozen=True)
class Answered:
    """A request: when it was due, sent and answered (seconds of the loop's clock); 0 for no answer; an error's code."""

    due: float
    sent: float
    done: float
    status: int
    code: str

    @property
    def latency(self) -> float:
        return self.done - self.due


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 0. Raises LoadError where an aim is missed, once all figures are told."""
    parser = ArgumentParser(prog="python benchmarks/serve_load.py", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=18, help="of each of eight measurements (default: %(default)s)")
    add("--timeout", type=float, default=2, help="of the server, in seconds (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the times of arrival (default: %(default)s)")
    add("--program", type=Path, default=PROGRAM, help="the server (default: the built one)")
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    figures = {**begin(parser.prog, argv), **measure(arguments)}
    tell(figures, rows_of(figures), path=arguments.json)
    if faults := faults_of(figures):
        raise LoadError("; ".join(faults))
    return 0


def measure(arguments: Namespace) -> dict[str, Any]:
    """Each kind of requests on a server of its own."""
    options = ("--threads", "1", "--timeout", str(arguments.timeout))
    cores = sorted(os.sched_getaffinity(0))
    kinds = {}
    try:
        for kind, (callers, fields) in KINDS.items():
            os.sched_setaffinity(0, cores[:1])  # which the server inherits
            with serve_tiny(*options, program=arguments.program) as server:
                os.sched_setaffinity(0, cores[1:] or cores)
                found = asyncio.run(phases(Asker(server.port, fields), callers, arguments))
                kinds[kind] = {"fields": fields, "callers": callers, **found}
    finally:
        os.sched_setaffinity(0, cores)
    return {"timeout_s": arguments.timeout, "seconds": arguments.seconds, "kinds": kinds}


async def phases(ask: Asker, callers: int, arguments: Namespace) -> dict[str, Any]:
    """The capacity, then the rates that are shares of it."""
    loop, chance = asyncio.get_running_loop(), random.Random(arguments.seed)
    await closed_loop(ask, callers, min(2.0, arguments.seconds))  # to warm up
    began = loop.time()
    capacity = summary(await closed_loop(ask, callers, arguments.seconds), began, arguments)
    loads = []
    for share in RATES:
        rate, began = share * max(capacity["goodput"], 1.0), loop.time()
        answers = await open_loop(ask, rate, arguments.seconds, chance)
        loads.append({"share": share, "rate": round(rate, 2), **summary(answers, began, arguments)})
    return {"capacity": capacity, "loads": loads}


class Asker:
    """Sends requests of one kind, each on a connection of its own."""

    def __init__(self, port: int, fields: dict[str, Any]) -> None:
        self._port = port
        # Not one prompt alone: a batch of the prompts of the batch before is cheaper.
        bodies = [json.dumps({"prompt": f"a dog {j}", "seed": j, **fields}).encode() for j in range(17)]
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n"
        self._requests = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._count = 0

    async def __call__(self, due: float) -> Answered:
        """Ask now what was due then."""
        clock = asyncio.get_running_loop().time
        request = self._requests[self._count % len(self._requests)]
        self._count += 1
        sent, answer = clock(), b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE), connected(self._port) as (reader, writer):
                writer.write(request)
                answer = await reader.read(-1)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
        code = "" if status in (0, 200) else json.loads(body)["error"]["code"]
        return Answered(due, sent, clock(), status, code)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def closed_loop(ask: Asker, callers: int, seconds: float) -> list[Answered]:
    """Callers who ask again when they are answered."""
    clock, answers = asyncio.get_running_loop().time, []
    end = clock() + seconds

    async def caller() -> None:
        while clock() < end:
            answers.append(await ask(clock()))
            if answers[-1].status != 200:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return answers


async def open_loop(ask: Asker, rate: float, seconds: float, chance: random.Random) -> list[Answered]:
    """Requests that come at random, so many a second on average."""
    clock = asyncio.get_running_loop().time
    due = clock()
    end, asked = due + seconds, []
    while (due := due + chance.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - clock()))
        asked.append(asyncio.create_task(ask(due)))
    return list(await asyncio.gather(*asked))


def summary(answers: Sequence[Answered], began: float, arguments: Namespace) -> dict[str, Any]:
    """What became of the requests of a measurement.

    goodput: of those that were answered before its end, and not in its first moments, while the queue filled.
    """
    timeout, end = arguments.timeout, began + arguments.seconds
    first = began + min(timeout, arguments.seconds / 4)
    accepted = [answer for answer in answers if answer.status in ACCEPTED]
    good = [answer for answer in accepted if answer.status == 200 and answer.latency <= timeout]
    outcomes = Counter(f"{answer.status} {answer.code}".strip() for answer in answers)
    late = [answer.sent - answer.due for answer in answers]
    return {
        "requests": len(answers),
        "outcomes": dict(sorted(outcomes.items())),
        "goodput": round(sum(first <= answer.done < end for answer in good) / (end - first), 2),
        "latency_ms": spread([answer.latency for answer in accepted]),
        "lateness_ms": spread(late),
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and most, in milliseconds; empty where there are none."""
    if not seconds:
        return {}
    found = {"p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99), "most": max(seconds)}
    return {name: round(1e3 * value, 2) for name, value in found.items()}


def faults_of(figures: dict[str, Any]) -> list[str]:
    """What misses an aim."""
    faults = []
    for kind, found in figures["kinds"].items():
        every = [found["capacity"], *found["loads"]]
        best, under_load = max(row["goodput"] for row in every), found["loads"][-1]
        limit = 1e3 * figures["timeout_s"]
        if unanswered := sum(row["outcomes"].get("0", 0) for row in every):
            faults.append(f"{kind}: {unanswered} requests were not answered")
        if under_load["goodput"] < KEPT * best:
            faults.append(f"{kind}: {under_load['goodput']} good answers a second at the most load, {best} at best")
        if under_load["latency_ms"].get("p99", limit + 1) > limit:
            faults.append(
                f"{kind}: an accepted request at the most load takes {under_load['latency_ms'].get('p99')} ms (p99)"
            )
        if (late := max(row["lateness_ms"]["p99"] for row in every if row["lateness_ms"])) > PUNCTUAL * limit:
            faults.append(f"{kind}: the client was {late} ms late (p99): the figures are not the server's")
    return faults


def rows_of(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """The figures as a table."""
    rows: list[tuple[str, ...]] = [
        ("requests", "a second", "good a second", "accepted p50, p99", "late p99", "outcomes")
    ]
    for kind, found in figures["kinds"].items():
        for row in (found["capacity"], *found["loads"]):
            name = f"{kind}, {row['share']:g} of capacity" if "share" in row else f"{kind}, {found['callers']} callers"
            latency, late = row["latency_ms"], row["lateness_ms"]
            taken = f"{latency['p50']}, {latency['p99']} ms" if latency else ""
            outcomes = ", ".join(f"{count} x {outcome}" for outcome, count in row["outcomes"].items())
            rows.append(
                (
                    name,
                    str(row.get("rate", "")),
                    str(row["goodput"]),
                    taken,
                    f"{late['p99']} ms" if late else "",
                    outcomes,
                )
            )
    return [*rows, (f"timeout {figures['timeout_s']:g} s; {shown(figures['machine'])}",)]


if __name__ == "__main__":
    sys.exit(run(main))
