"""``python -m runtime.bench``: where the time of an image goes, beside a baseline measured in the same run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.cli import ArgumentParser, run
from foundation.measuring import as_line, begin
from runtime.bench.baselines import BASELINES
from runtime.errors import RequestError

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from runtime.bench.gpu import Gpu, MemoryWatch
    from runtime.bench.measure import Measurement, Passage
    from runtime.pipeline import Pipeline

_FOLDER = Path("arcflow-out")
_CPU = "cpu"
_OF_OPENING = ("device", "backend", "low_vram", "allow_links")
_EXAMPLES = """examples:
  python -m runtime.bench
  python -m runtime.bench --runs 200 --num-images 4 --roofline
  python -m runtime.bench --baseline torch --baseline teacher --base models/tiny/teacher --adapter models/tiny/adapter
  python -m runtime.bench --model flux --target sm90 --roofline --baseline torch --base FLUX.1-dev --adapter arcflow
  python -m runtime.bench --backend onnxruntime --device cuda

Prints a table, then one line of JSON; the image shows the median run. On a GPU stages are timed by the GPU itself
(under ONNX Runtime by the host, which waits), and its memory is what all of this process takes of it, CUDA's own
included; that of the baselines is what torch allocated. Baselines run on the same device in processes of their own and
need the extra 'train'. --roofline counts ONNX files and needs the extra 'export'; plans are counted by the ONNX bundle
that they were built from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0. Raises ArcFlowError."""
    arguments = _parse(argv)
    bundle = _find(arguments)
    device = arguments.device or (_CPU if bundle.manifest.engine is None else "cuda")
    from runtime.bench import baselines
    from runtime.bench.gpu import find_gpu
    from runtime.bench.table import text
    from runtime.hosts.onnx_cuda import ordinal_of

    ordinal = ordinal_of(device)
    gpu = None if ordinal is None else find_gpu(ordinal)

    baselines.check(arguments, bundle.manifest)
    begun = begin("python -m runtime.bench", argv)
    pipeline, opened, measured, memory = _measure(arguments, ordinal)
    subject = _subject(bundle, arguments)
    result: dict[str, Any] = {
        **begun,
        **subject,
        "device": gpu.info.name if gpu else _CPU,
        "gpu": asdict(gpu.info) if gpu else None,
        "backend": pipeline.backend,
        "open_s": opened,
        **asdict(measured),
        "peak_bytes": memory,
        "gpu_bytes": dict(pipeline.memory()) if gpu else None,
        "roofline": _roofline(pipeline, bundle, arguments, measured, gpu) if arguments.roofline else None,
    }
    timeline = result.pop("timeline")
    pipeline.close()  # The baselines may need the memory.
    kinds = [kind for name in arguments.baseline for kind in BASELINES[name]]
    result["baselines"] = [baselines.run_baseline(kind, subject, arguments, bundle.manifest, device) for kind in kinds]
    image = arguments.timeline or _FOLDER / f"timeline-{result['bundle']}.png"
    _draw(image, result, timeline)
    sys.stdout.write(f"{text(result)}\ntimeline: {image}\n{as_line(result)}\n")
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.bench", description="Measure where the time of an image goes.", epilog=_EXAMPLES
    )
    add = parser.add_argument
    add("--model", default="tiny", help="a model's name, or a bundle's folder (default: the embedded %(default)s)")
    add("--precision", help="which bundle of the model: fp16, ...")
    add("--target", help="which bundle of the model: cpu, sm90, ...")
    add("--device", help="cpu, cuda or cuda:N, ours and the baselines' (default: what the bundle is for)")
    add("--backend", choices=("tensorrt", "onnxruntime"), help="what runs the networks (default: what they are)")
    add("--low-vram", action="store_true", help="unload the text encoders when they are done")
    add(
        "--allow-links",
        action="store_true",
        help="the bundle's files may be links, as in caches; digests must still fit",
    )
    add("--prompt", default="a smiling face with sunglasses")
    add("--prompts", choices=("new", "same"), default="new",
        help="new: each run has a prompt of its own (a number is added), so that no cache knows it; same: a repeated "
        "prompt (default: %(default)s)")  # fmt: skip
    add("--num-images", type=int, default=1, metavar="N", help="images a run, one batch (default: %(default)s)")
    add("--nfe", type=int, help="network evaluations (default: the bundle's)")
    add("--width", type=int, metavar="PX")
    add("--height", type=int, metavar="PX")
    add("--threads", type=int, metavar="N", help="compute threads (default: the cores, at most 8)")
    add("--runs", type=int, default=50, metavar="N", help="measured runs (default: %(default)s)")
    add("--warm-up", type=int, default=5, metavar="N", help="runs before them (default: %(default)s)")
    add("--baseline", action="append", choices=sorted(BASELINES), default=[],
        help="measure this as well: torch (the same student, eager and compiled) or teacher (its 50 steps); "
        "may be given twice")  # fmt: skip
    add("--baseline-runs", type=int, default=10, metavar="N", help="measured images of each (default: %(default)s)")
    add("--base", type=Path, help="the baseline's diffusers folder (default for tiny: models/tiny/teacher)")
    add("--adapter", type=Path, help="the baseline student's adapter (default for tiny: models/tiny/adapter)")
    add("--dtype", help="the baseline's type (default: what the bundle's backbone computes in)")
    add("--roofline", action="store_true", help="show each network's physical limit on this machine, and our share")
    add("--onnx", type=Path, metavar="FOLDER", help="the ONNX bundle of the plans (default: the one beside them)")
    add("--timeline", type=Path, metavar="FILE.png", help=f"where the image goes (default: {_FOLDER}/timeline-*.png)")
    arguments = parser.parse_args(argv)
    for name, least in (("runs", 1), ("warm_up", 0), ("num_images", 1), ("baseline_runs", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.timeline and arguments.timeline.suffix.lower() != ".png":
        parser.error("--timeline takes the name of a file that ends in .png")
    return arguments


def _find(arguments: Namespace) -> Bundle:
    """The bundle that is measured, its manifest checked. Raises RequestError for more images than one batch."""
    from engines.bundle import open_bundle
    from engines.locate import locate

    model: str = arguments.model
    is_path = model in (".", "..") or any(mark in model for mark in (os.sep, os.altsep) if mark)
    folder = Path(model) if is_path else locate(model, arguments.precision, arguments.target)
    bundle = open_bundle(folder, contents="when used", allow_links=arguments.allow_links)
    most = bundle.manifest.limits.batch.max
    if arguments.num_images > most:
        raise RequestError(f"--num-images is {arguments.num_images}; one batch of {model} is at most {most}")
    return bundle


def _measure(arguments: Namespace, ordinal: int | None) -> tuple[Pipeline, float, Measurement, dict[str, int]]:
    """The open pipeline, the seconds that took, its runs, and the bytes it took at most, by kind ("host", "gpu").

    ordinal: of the GPU whose memory is watched.
    """
    from runtime.bench.measure import measure, peak_memory
    from runtime.pipeline import Pipeline

    watch: contextlib.AbstractContextManager[MemoryWatch | None] = contextlib.nullcontext()
    if ordinal is not None:
        from runtime.bench.gpu import MemoryWatch

        watch = MemoryWatch(ordinal)
    chosen = {name: getattr(arguments, name) for name in _OF_OPENING if getattr(arguments, name)}
    options = {name: getattr(arguments, name) for name in ("num_images", "nfe", "width", "height")}
    with watch as gpu_memory:
        start = time.perf_counter()
        pipeline = Pipeline.open(
            arguments.model,
            precision=arguments.precision,
            target=arguments.target,
            threads=arguments.threads,
            **chosen,
        )
        opened = time.perf_counter() - start
        measured = measure(
            lambda seed: pipeline.generate(_prompt(arguments, seed), seed=seed, **options),
            arguments.runs,
            arguments.warm_up,
            gpu_memory.rest if gpu_memory else lambda: None,
        )
        memory = dict(peak_memory())  # Before the baselines and the roofline take their own.
        if gpu_memory:
            memory["gpu"] = gpu_memory.peak()
    return pipeline, opened, measured, memory


def _prompt(arguments: Namespace, run: int) -> str:
    """The prompt of a run; numbers have as many digits each, and thus as many tokens."""
    return arguments.prompt if arguments.prompts == "same" else f"{arguments.prompt}, {run:04d}"


def _subject(bundle: Bundle, arguments: Namespace) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.name),
        "digest": manifest.digest,
        "images": arguments.num_images,
        "nfe": arguments.nfe or manifest.schedule.nfe,
        "width": arguments.width or manifest.limits.width.opt,
        "height": arguments.height or manifest.limits.height.opt,
        "prompts": arguments.prompts,
    }


def _roofline(
    pipeline: Pipeline, bundle: Bundle, arguments: Namespace, measured: Measurement, gpu: Gpu | None
) -> list[dict[str, Any]]:
    """For each network: cost, limit, what its evaluation took, and the share."""
    from runtime.bench.costs import costs_of, rows
    from runtime.bench.peaks import cpu_peak, gpu_peak
    from runtime.hosts.onnx_network import default_threads

    chosen = {name: getattr(arguments, name) for name in ("nfe", "num_images", "width", "height")}
    sizes = pipeline.sizes(_prompt(arguments, 0), **chosen)
    costs = costs_of(bundle, sizes, arguments.onnx)
    if gpu:
        peak = gpu_peak(gpu, "float32" if bundle.manifest.engine is None else "tf32")
    else:
        types = sorted({kind for cost in costs.values() for kind in cost.operations})
        peak = cpu_peak(types, arguments.threads or default_threads())
    took = {name: stage.median_s for name, stage in measured.stages.items()}
    return [asdict(row) for row in rows(costs, peak, took)]


def _draw(path: Path, result: Mapping[str, Any], timeline: Sequence[Passage]) -> None:
    """Write the timeline."""
    import io

    from runtime.bench.table import programs, title
    from runtime.bench.timeline import draw
    from runtime.image import write_files

    buffer = io.BytesIO()
    draw(title(result), programs(result, timeline)).save(buffer, "PNG")
    write_files({path: buffer.getvalue()})


if __name__ == "__main__":
    sys.exit(run(main))
