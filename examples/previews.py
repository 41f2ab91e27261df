"""The way from noise to the image, as frames and as one strip. Previews cost no evaluation of the backbone.

python examples/previews.py "a red heart" out/previews
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import Pipeline


def main(prompt: str = "a red heart", folder: str = "out/previews") -> None:
    result = Pipeline.open("tiny").generate(prompt, seed=3, previews=6)
    result.save(Path(folder) / "heart.png", scale=2)  # heart.png, heart-preview-00.png, ...
    frames = [preview.image for preview in result.previews[0]]  # The noisiest first.
    strip = Image.fromarray(np.concatenate([*frames, result.images[0]], axis=1))
    strip.resize((strip.width * 2, strip.height * 2), Image.Resampling.NEAREST).save(Path(folder) / "strip.png")
    for preview in result.previews[0]:
        print(f"noise level {preview.sigma:.3f}")
    print(Path(folder) / "strip.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
