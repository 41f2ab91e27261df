"""Several prompts and several seeds in one request, then the same image again by its seed.

python examples/batch.py out/batch
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from runtime import Pipeline

PROMPTS = ["a smiling face with sunglasses", "a pizza", "a red apple"]


def main(folder: str = "out/batch") -> None:
    pipeline = Pipeline.open("tiny")
    result = pipeline.generate(PROMPTS, seed=10, num_images=2)
    settings = result.settings
    for file, prompt, seed in zip(
        result.save(Path(folder) / "image.png", scale=2), settings.prompts, settings.seeds, strict=True
    ):
        print(f"{file}: {prompt}, seed {seed}")

    # Image j of a request has the seed `seed + j`, whatever is generated beside it: ask for one of them alone. (The
    # last bit of a matrix product may depend on how many rows it has, so a pixel may differ by one step.)
    alone = pipeline.generate(settings.prompts[3], seed=settings.seeds[3]).images[0]
    difference = np.abs(alone.astype(int) - result.images[3].astype(int)).max()
    print(f"image 3 generated alone: pixels differ by at most {difference}")


if __name__ == "__main__":
    main(*sys.argv[1:])
