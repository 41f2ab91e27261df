"""What partial images cost ``arcflow-serve``: ``python benchmarks/serve_frames.py``.

One caller asks a server of one thread for images, one after the other, as a plain answer and as a stream with 8 partial
images. Prints the server's processor time and the caller's wait an image, then one line of JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.serving import Server, serve_tiny
from foundation.cli import ArgumentParser, run
from foundation.errors import ArcFlowError
from foundation.measuring import begin, tell

SIZES = ("64x64", "96x64")
FRAMES = 8
WARM_UP = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; returns 0. Raises ArcFlowError where a request is not answered."""
    parser = ArgumentParser(prog="python benchmarks/serve_frames.py", description=__doc__)
    parser.add_argument("--requests", type=int, default=60, help="of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    arguments = parser.parse_args(argv)
    if arguments.requests < 1:
        parser.error("--requests must be at least 1")
    figures: dict[str, Any] = begin(parser.prog, argv)
    lines = [("size", "partial images", "processor ms", "wait ms")]
    with serve_tiny("--threads", "1") as server:
        for size in SIZES:
            for frames in (0, FRAMES):
                processor, wait = measured(server, size, frames, arguments.requests)
                figures[f"{size}, {frames}"] = {"processor_ms": processor, "wait_ms": wait}
                lines.append((size, str(frames), f"{processor:.1f}", f"{wait:.1f}"))
    tell(figures, lines, right=range(1, 4), path=arguments.json)
    return 0


def measured(server: Server, size: str, frames: int, requests: int) -> tuple[float, float]:
    """Milliseconds an image: the server's processor time and the caller's wait."""
    fields = {"prompt": "a smiling face with sunglasses", "size": size}
    if frames:
        fields |= {"stream": True, "partial_images": frames}
    before, start = 0.0, 0.0
    for seed in range(WARM_UP + requests):
        if seed == WARM_UP:
            before, start = server.processor_seconds(), time.perf_counter()
        answer = server.generate(seed=seed, **fields)
        if answer.status != 200 or b"event: error" in answer.body:
            raise ArcFlowError(f"a request was answered {answer.status}: {answer.body[:200]!r}")
    seconds = server.processor_seconds() - before, time.perf_counter() - start
    return 1e3 * seconds[0] / requests, 1e3 * seconds[1] / requests


if __name__ == "__main__":
    sys.exit(run(main))
