"""``python -m runtime.generate "a smiling face with sunglasses"``: a prompt in, PNG files out."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.cli import ArgumentParser, run
from foundation.files import slug
from runtime.timing import Stopwatch, since_process_start

if TYPE_CHECKING:
    from runtime.result import Generation

_FOLDER = Path("arcflow-out")
_OF_OPENING = ("precision", "target", "threads", "host", "backend", "device", "low_vram", "allow_links")
_OF_REQUEST = ("seed", "nfe", "num_images", "width", "height", "previews")
_EXAMPLES = """examples:
  python -m runtime.generate "a smiling face with sunglasses"
  python -m runtime.generate "picture of a pizza" --seed 7 --num-images 4 --scale 8
  python -m runtime.generate "a red apple" --out apple.png --previews 6 --json
  python -m runtime.generate "a red heart" --model engines/bundles/tiny-fp16-cpu --nfe 4

The image's settings are in its text chunks. The same seed gives the same bytes.
"""


def build_parser() -> ArgumentParser:
    """The command line of ``runtime.generate``."""
    parser = ArgumentParser(
        prog="python -m runtime.generate", description="Generate images from a prompt.", epilog=_EXAMPLES
    )
    add = parser.add_argument
    add("prompt", help="what the image should show")
    add("--model", default="tiny", help="a model's name, or a bundle's folder (default: the embedded %(default)s)")
    add("--precision", help="which bundle of the model: fp16, ...")
    add("--target", help="which bundle of the model: cpu, ...")
    add("--seed", type=int, default=0, help="0 to 2^64 - 1 (default: %(default)s); image j uses seed + j")
    add("--nfe", type=int, help="network evaluations (default: the bundle's, 2 for tiny)")
    add("--num-images", type=int, default=1, metavar="N", help="images to make (default: %(default)s)")
    add("--width", type=int, metavar="PX", help="within the bundle's limits (default: its usual width)")
    add("--height", type=int, metavar="PX", help="within the bundle's limits (default: its usual height)")
    add("--previews", type=int, default=0, metavar="N", help="also write N frames between noise and image")
    add("--scale", type=int, default=1, metavar="N", help="enlarge each pixel to N x N (default: %(default)s)")
    add("--out", type=Path, metavar="FILE.png", help=f"where to write (default: {_FOLDER}/PROMPT-SEED.png)")
    add("--threads", type=int, metavar="N", help="compute threads (default: the cores, at most 8)")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: what the bundle is for)")
    add("--backend", choices=("tensorrt", "onnxruntime"), help="what runs the networks (default: what they are)")
    add("--low-vram", action="store_true", help="text encoders and backbone take turns on the GPU: slower, smaller")
    add(
        "--allow-links",
        action="store_true",
        help="the bundle's files may be links, as in caches; digests must still fit",
    )
    add("--host", choices=("python", "native"), default="python", help="what runs it: this package, or the C++ core")
    add("--json", action="store_true", help="print one JSON object: settings, files, timings in seconds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Generate and write; returns 0. Raises ArcFlowError; nothing is written then."""
    arguments = build_parser().parse_args(argv)
    clock = Stopwatch()
    clock.seconds["start"] = since_process_start()
    out = arguments.out or _FOLDER / f"{slug(arguments.prompt)}-{arguments.seed}.png"
    with clock.stage("import"):
        from runtime.image import check_name, check_scale, check_targets, targets
        from runtime.pipeline import Pipeline
        from runtime.request import check_request

        check_name(out)
    with clock.stage("open"):
        pipeline = Pipeline.open(arguments.model, **{name: getattr(arguments, name) for name in _OF_OPENING})
    options = {name: getattr(arguments, name) for name in _OF_REQUEST}
    # What would fail after the work fails before it.
    request = check_request(pipeline.manifest, arguments.prompt, **options)
    check_scale(request.width, request.height, arguments.scale)
    paths = [path for path, *_ in targets(out, request.total, request.previews)]
    check_targets(paths, remedy="choose another --out")
    generation = pipeline.generate(arguments.prompt, **options)
    clock.seconds.update(generation.timings)
    with clock.stage("write"):
        files = generation.save(out, scale=arguments.scale)
    clock.seconds["total"] = since_process_start()
    _report(arguments, generation, files, clock.seconds, pipeline.backend)
    return 0


def _report(
    arguments: Namespace, generation: Generation, files: Sequence[Path], seconds: dict[str, float], backend: str
) -> None:
    # What runs it is news only where there was a choice.
    chosen = bool(arguments.device or arguments.backend or generation.settings.target != "cpu")
    for warning in generation.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if arguments.json:
        count = len(generation.images)
        document = {
            "images": [generation.settings.of_image(index) for index in range(count)],
            "files": [str(path) for path in files],
            "scale": arguments.scale,
            **({"backend": backend} if chosen else {}),
            "timings": {stage: round(value, 6) for stage, value in seconds.items()},
            "warnings": list(generation.warnings),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    for path in files:
        sys.stdout.write(f"{path}\n")
    settings = generation.settings
    sys.stdout.write(
        f"{len(generation.images)} x {settings.width}x{settings.height} px, {settings.nfe} evaluations, "
        f"seed {settings.seeds[0]}, {seconds['total']:.2f} s from start to file\n"
    )
    if chosen:
        sys.stdout.write(f"ran on {backend}\n")


if __name__ == "__main__":
    sys.exit(run(main))
