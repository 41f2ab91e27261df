"""``python -m benchmarks.teacher FOLDER PROMPT THREADS RUNS``: times the teacher for benchmarks/latency.py.

The FluxPipeline of FOLDER as diffusers has it, in eager PyTorch, after one image that does not count.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.cli import run
from foundation.errors import ArcFlowError

STEPS, GUIDANCE, SIDE, TEXT_TOKENS = 50, 2.0, 64, 12


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line of JSON. Raises ArcFlowError where diffusers is not installed."""
    folder, prompt, threads, runs = sys.argv[1:] if argv is None else argv
    sys.stdout.write(json.dumps(measure(Path(folder), prompt, int(threads), int(runs))) + "\n")
    return 0


def measure(folder: Path, prompt: str, threads: int, runs: int) -> dict[str, Any]:
    """Median seconds of an image, and of its steps alone. Raises ArcFlowError."""
    try:
        import torch
        from diffusers import FluxPipeline
    except ImportError as error:
        raise ArcFlowError(f"the teacher needs the extra 'train' ({error}); leave it out with --no-teacher") from error

    torch.set_num_threads(threads)
    pipeline: Any = FluxPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    marks: dict[str, float] = {}
    pipeline.transformer.register_forward_pre_hook(lambda *_: marks.setdefault("first", time.perf_counter()) and None)

    def step_end(_: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        marks["last"] = time.perf_counter()
        return kwargs

    walls, denoise = [], []
    for attempt in range(1 + runs):
        marks.clear()
        start = time.perf_counter()
        pipeline(
            prompt, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            max_sequence_length=TEXT_TOKENS, generator=torch.Generator().manual_seed(attempt),
            callback_on_step_end=step_end,
        )  # fmt: skip
        if attempt:
            walls.append(time.perf_counter() - start)
            denoise.append(marks["last"] - marks["first"])
    return {
        "total_s": statistics.median(walls),
        "denoise_s": statistics.median(denoise),
        "steps": STEPS,
        "runs": runs,
    }


if __name__ == "__main__":
    sys.exit(run(main))
