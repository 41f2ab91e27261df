"""One image from a prompt, as a PNG file.

python examples/generate.py "a smiling face with sunglasses" out/sunglasses.png
"""

from __future__ import annotations

import sys

from runtime import Pipeline


def main(prompt: str = "a smiling face with sunglasses", file: str = "out/sunglasses.png") -> None:
    pipeline = Pipeline.open("tiny")  # A model's name or a bundle's folder; every byte is verified first.
    result = pipeline.generate(prompt, seed=5)
    result.save(file, scale=4)  # tiny's images are small: every pixel becomes 4 x 4.
    height, width, _ = result.images[0].shape  # uint8 [height, width, 3]; result.pil()[0] is a Pillow image.
    print(f"{file}: {width} x {height} px, {result.settings.nfe} network evaluations")


if __name__ == "__main__":
    main(*sys.argv[1:])
