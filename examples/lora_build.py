"""A bundle of the embedded model with a style LoRA merged in, and an image by each of the two bundles.

    python examples/lora_build.py out/lora

It needs the extra `export` (pip install -e '.[export]') and takes a minute or two on two cores. The LoRA here is
random, with keys as diffusers writes them: it changes the images and has no style. For FLUX.1-dev give a real one to
the same command: python -m export.build --model flux ... --lora my-style.safetensors:0.8
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from export.build import main as build
from runtime import Pipeline

TEACHER = Path(__file__).resolve().parents[1] / "models" / "tiny" / "teacher"
RANK = 4


def write_lora(file: Path) -> None:
    """Random factors of rank RANK for the value projection of every attention of the blocks of image and text."""
    weights = load_file(TEACHER / "transformer" / "diffusion_pytorch_model.safetensors")
    generator, pairs = torch.Generator().manual_seed(0), {}
    for name in sorted(weights):
        if name.endswith("attn.to_v.weight"):
            rows, columns = weights[name].shape
            module = f"transformer.{name.removesuffix('.weight')}"
            pairs[f"{module}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) / columns**0.5
            pairs[f"{module}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) / RANK**0.5
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(pairs, file)


def main(folder: str = "out/lora") -> None:
    out = Path(folder)
    write_lora(out / "style.safetensors")
    bundle = out / "tiny-fp16-cpu"
    build(["--model", "tiny", "--lora", f"{out / 'style.safetensors'}:1.5", "--out", str(bundle)])
    for name, source in (("plain", "tiny"), ("styled", bundle)):
        (file,) = (
            Pipeline.open(source).generate("a smiling face with sunglasses", seed=5).save(out / f"{name}.png", scale=4)
        )
        print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
