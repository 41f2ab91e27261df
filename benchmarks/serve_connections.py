"""``arcflow-serve`` with many open connections: ``python benchmarks/serve_connections.py``.

First alone, then beside a flood from another process: half of its connections have asked once and are kept open, the
others send a request one byte a second and come back when they are sent away. Both times: how long ``/health`` takes on
new connections, and how long honest callers wait for an image. At the end every connection must have been counted.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.serving import PROGRAM, Server, parse_metrics, send, serve_tiny
from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from foundation.measuring import begin, percentile, shown, tell

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: " + b"a" * 4096
# Eight threads for requests: one that makes an image, five that wait, two that are told there is no room.
OPTIONS = ["--threads", "1", "--queue", "5", "--max-batch", "1"]
CALLERS = 2


class ConnectionsError(ArcFlowError):
    """The server fell, or lost count of a connection."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns 0. Raises ConnectionsError where a connection was not counted."""
    parser = ArgumentParser(prog="python benchmarks/serve_connections.py", description=__doc__)
    add = parser.add_argument
    add("--connections", type=int, default=2000, help="of the flood (default: %(default)s)")
    add("--seconds", type=float, default=30, help="of the flood (default: %(default)s)")
    add("--program", type=Path, default=PROGRAM, help="the server (default: the built one)")
    add("--json", type=Path, metavar="FILE", help="also write the figures here")
    add("--flood", type=int, metavar="PORT", help="be the flood")
    arguments = parser.parse_args(argv)
    if arguments.flood:
        counts = asyncio.run(flood(arguments.flood, arguments.connections, arguments.seconds))
        sys.stdout.write(json.dumps(counts) + "\n")
        return 0
    figures = {**begin(parser.prog, argv), **measure(arguments)}
    tell(figures, rows_of(figures), path=arguments.json)
    if figures["uncounted"]:
        raise ConnectionsError(f"{figures['uncounted']} connections were neither open nor counted as ended")
    return 0


def measure(arguments: Namespace) -> dict[str, Any]:
    """Alone and beside the flood."""
    wanted = ["--connections", str(arguments.connections), "--seconds", str(arguments.seconds)]
    with serve_tiny(*OPTIONS, program=arguments.program) as server:
        alone = both(server, min(5.0, arguments.seconds / 2))
        command = [sys.executable, __file__, "--flood", str(server.port), *wanted]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            child.stdout.readline()  # all connections are open
            threads = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
            crowded = both(server, arguments.seconds - 2)
            counts = json.loads(child.stdout.readline())
        metrics = settled(server)
        code = server.stop()
    ended = {name: value for name, value in metrics.items() if name.startswith("arcflow_connections_ended_total")}
    return {
        "connections": arguments.connections,
        "alone": alone,
        "crowded": crowded,
        "threads": threads,
        "flood": counts,
        "ended": {name.split('"')[1]: int(value) for name, value in ended.items()},
        "uncounted": int(
            metrics.get("arcflow_connections_total", 0) - sum(ended.values()) - metrics.get("arcflow_connections", 0)
        ),
        "exit_code": code,
    }


def settled(server: Server) -> dict[str, float]:
    """The metrics once the flood's connections have ended."""
    for _ in range(100):
        metrics = parse_metrics(send(server.connect(), "GET", "/metrics").body.decode())
        if metrics.get("arcflow_connections", 0) < 5:
            break
        time.sleep(0.05)
    return metrics


def both(server: Server, seconds: float) -> dict[str, Any]:
    """How long probes and honest callers wait, at the same time."""
    end = time.monotonic() + seconds
    probes: list[float] = []
    images: list[float] = []
    failures: Counter[str] = Counter()

    def again(ask: Callable[[], int], into: list[float], pause: float) -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                status = ask()
            except OSError as error:
                status = 0
                failures[type(error).__name__] += 1
            into.append(time.monotonic() - began)
            if status not in (0, 200):
                failures[str(status)] += 1
            time.sleep(pause)

    threads = [threading.Thread(target=again, args=(lambda: server.get("/health").status, probes, 0.02))]
    ask = lambda: server.generate(prompt="a smiling face with sunglasses", seed=1).status  # noqa: E731
    threads += [threading.Thread(target=again, args=(ask, images, 0.0)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"health": spread(probes), "image": spread(images), "failures": dict(failures)}


def spread(seconds: list[float]) -> dict[str, float]:
    """Count, and quantiles in milliseconds."""
    values = {name: round(1e3 * percentile(seconds, q), 2) for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99))}
    return {"count": len(seconds), **values, "most_ms": round(1e3 * max(seconds), 2)}


async def flood(port: int, connections: int, seconds: float) -> dict[str, int]:
    """Half kept open, half slow, until the time is up."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    open_ones = asyncio.Semaphore(100)
    tasks = [asyncio.create_task(one(port, end, counts, open_ones, slow=j % 2 == 1)) for j in range(connections)]
    while counts["first"] < connections and time.monotonic() < end:
        await asyncio.sleep(0.02)
    sys.stdout.write("open\n")
    sys.stdout.flush()
    await asyncio.gather(*tasks)
    return dict(counts)


async def one(port: int, end: float, counts: Counter[str], open_ones: asyncio.Semaphore, *, slow: bool) -> None:
    """A connection, and another when it ends, until the time is up."""
    first = True
    while (left := end - time.monotonic()) > 0:
        answer = b""
        try:
            async with open_ones:
                reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), left)
        except (OSError, TimeoutError):
            counts["not connected"] += 1
            await asyncio.sleep(0.1)
            continue
        finally:
            counts["first"] += first
            first = False
        counts["opened"] += 1
        try:
            async with asyncio.timeout(left):
                if slow:
                    answer = await dribble(reader, writer)
                else:
                    writer.write(HEALTH)
                    answer = await reader.read(4096)
                    await reader.read()
            counts["answered " + answer[9:12].decode() if answer else "closed without an answer"] += 1
        except TimeoutError:
            counts["still open"] += 1
        except OSError:
            counts["answered " + answer[9:12].decode() if answer else "broken"] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """A byte a second until the server has enough of it; gives what it said."""
    told = asyncio.create_task(reader.read(4096))
    try:
        for byte in SLOW:
            writer.write(bytes([byte]))
            done, _ = await asyncio.wait({told}, timeout=1)
            if done:
                break
        return await told
    finally:
        told.cancel()


def rows_of(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures as a table."""
    rows = [("connections, threads of the server", f"{figures['connections']}, {figures['threads']}")]
    for name in ("alone", "crowded"):
        for what in ("health", "image"):
            row = figures[name][what]
            rows.append((f"{name}: {what}: p50, p99, most", f"{row['p50_ms']}, {row['p99_ms']}, {row['most_ms']} ms"))
        rows.append((f"{name}: failures", str(figures[name]["failures"])))
    rows += [("the flood saw", str(figures["flood"])), ("the server counted", str(figures["ended"]))]
    return [*rows, ("machine", shown(figures["machine"]))]


if __name__ == "__main__":
    sys.exit(run(main))
