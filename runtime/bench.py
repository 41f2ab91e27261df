"""``python -m runtime.bench``: where the time of a picture goes, beside a baseline measured in the same run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.cli import ArgumentParser, run
from runtime.errors import BackendError, RequestError

if TYPE_CHECKING:
    from runtime.measure import Measurement
    from runtime.pipeline import Pipeline

_FOLDER = Path("arcflow-out")
_BASELINES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "torch": (("student", "eager"), ("student", "compile")),
    "teacher": (("teacher", "eager"),),
}
_EXAMPLES = """examples:
  python -m runtime.bench
  python -m runtime.bench --runs 200 --num-images 4 --roofline
  python -m runtime.bench --baseline torch --baseline teacher --base models/tiny/teacher --adapter models/tiny/adapter

Prints a table, then one line of JSON; the picture shows the median run. Baselines run in processes of their own and
need the extra 'train'. --roofline counts the bundle's ONNX files and needs the extra 'export'.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0. Raises ArcFlowError."""
    arguments = _parse(argv)
    from runtime.measure import measure, peak_memory
    from runtime.pipeline import Pipeline

    pipeline = Pipeline.open(
        arguments.model, precision=arguments.precision, target=arguments.target, threads=arguments.threads
    )
    most = pipeline.manifest.limits.batch.max
    if arguments.num_images > most:
        raise RequestError(f"--num-images is {arguments.num_images}; one batch of {arguments.model} is at most {most}")
    options = {name: getattr(arguments, name) for name in ("num_images", "nfe", "width", "height")}
    measured = measure(
        lambda seed: pipeline.generate(arguments.prompt, seed=seed, **options), arguments.runs, arguments.warm_up
    )
    memory = peak_memory()  # Before the baselines and the roofline take their own.
    result: dict[str, Any] = {
        **_subject(pipeline, arguments),
        "total_s": asdict(measured.total),
        "stages_s": [asdict(stage) for stage in measured.stages],
        "runs": measured.runs,
        "peak_bytes": dict(memory),
        "baselines": [_baseline(kind, pipeline, arguments) for name in arguments.baseline for kind in _BASELINES[name]],
        "roofline": _roofline(pipeline, arguments, measured) if arguments.roofline else None,
        "machine": _machine(),
    }
    timeline = arguments.timeline or _FOLDER / f"timeline-{result['bundle']}.png"
    _draw(timeline, result, measured)
    sys.stdout.write(_table(result) + f"\ntimeline: {timeline}\n" + json.dumps(result) + "\n")
    return 0


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.bench", description="Measure where the time of a picture goes.", epilog=_EXAMPLES
    )
    add = parser.add_argument
    add("--model", default="tiny", help="a model's name, or a bundle's folder (default: the embedded %(default)s)")
    add("--precision", help="which bundle of the model: fp32, ...")
    add("--target", help="which bundle of the model: cpu, ...")
    add("--prompt", default="a dark ankle boot")
    add("--num-images", type=int, default=1, metavar="N", help="pictures a run, one batch (default: %(default)s)")
    add("--nfe", type=int, help="network evaluations (default: the bundle's)")
    add("--width", type=int, metavar="PX")
    add("--height", type=int, metavar="PX")
    add("--threads", type=int, metavar="N", help="compute threads (default: the cores, at most 8)")
    add("--runs", type=int, default=50, metavar="N", help="measured runs (default: %(default)s)")
    add("--warm-up", type=int, default=5, metavar="N", help="runs before them (default: %(default)s)")
    add("--baseline", action="append", choices=sorted(_BASELINES), default=[],
        help="measure this as well: torch (the same student, eager and compiled) or teacher (its 50 steps); "
        "may be given twice")  # fmt: skip
    add("--baseline-runs", type=int, default=10, metavar="N", help="measured pictures of each (default: %(default)s)")
    add("--base", type=Path, help="the baseline's diffusers folder (default for tiny: models/tiny/teacher)")
    add("--adapter", type=Path, help="the baseline student's adapter (default for tiny: models/tiny/adapter)")
    add("--device", default="cpu", help="the baseline's device (default: %(default)s)")
    add("--dtype", default="float32", help="the baseline's type (default: %(default)s)")
    add("--roofline", action="store_true", help="show each network's physical limit on this machine, and our share")
    add("--timeline", type=Path, metavar="FILE.png", help=f"where the picture goes (default: {_FOLDER}/timeline-*.png)")
    arguments = parser.parse_args(argv)
    for name, least in (("runs", 1), ("warm_up", 0), ("num_images", 1), ("baseline_runs", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.timeline and arguments.timeline.suffix.lower() != ".png":
        parser.error("--timeline takes the name of a file that ends in .png")
    return arguments


def _subject(pipeline: Pipeline, arguments: Namespace) -> dict[str, Any]:
    manifest = pipeline.manifest
    return {
        "bundle": f"{manifest.model}-{manifest.precision}-{manifest.target}",
        "digest": manifest.digest,
        "images": arguments.num_images,
        "nfe": arguments.nfe or manifest.schedule.nfe,
        "width": arguments.width or manifest.limits.width.opt,
        "height": arguments.height or manifest.limits.height.opt,
    }


def _baseline(kind: tuple[str, str], pipeline: Pipeline, arguments: Namespace) -> dict[str, Any]:
    """One baseline in a process of its own: what it holds and how it schedules threads must not touch our figures."""
    manifest = pipeline.manifest
    what, mode = kind
    models = Path("models") / manifest.model
    base, adapter = arguments.base or models / "teacher", arguments.adapter or models / "adapter"
    if not base.is_dir():
        raise RequestError(f"--baseline needs the base pipeline, and there is no folder {base}: give --base FOLDER")
    subject = _subject(pipeline, arguments)
    command = [sys.executable, "-m", "arcflow.baseline", "--base", base, "--what", what, "--mode", mode]
    command += ["--width", subject["width"], "--height", subject["height"], "--device", arguments.device]
    command += ["--text-tokens", manifest.limits.text_tokens.max, "--guidance", manifest.schedule.guidance]
    command += ["--runs", arguments.baseline_runs, "--prompt", arguments.prompt, "--dtype", arguments.dtype]
    if what == "student":
        command += ["--adapter", adapter, "--nfe", subject["nfe"]]
    if arguments.threads:
        command += ["--threads", arguments.threads]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BackendError(f"the baseline {what} ({mode}) failed: {lines[-1] if lines else 'it said nothing'}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _roofline(pipeline: Pipeline, arguments: Namespace, measured: Measurement) -> list[dict[str, Any]]:
    """For each network of an ONNX bundle: cost, limit, what its evaluation took, and the share."""
    from engines.bundle import open_bundle
    from engines.locate import locate
    from runtime.backend import default_threads
    from runtime.measure import cpu_peak
    from runtime.roofline import cost_of, limit_of

    sizes = pipeline.sizes(
        arguments.prompt, num_images=arguments.num_images, width=arguments.width, height=arguments.height
    )
    source = Path(arguments.model)
    folder = source if source.is_dir() else locate(arguments.model, arguments.precision, arguments.target)
    bundle = open_bundle(folder, contents="when used")
    threads = arguments.threads or default_threads()
    costs = {
        name: cost_of(bundle.read(network.file), sizes[name]) for name, network in pipeline.manifest.networks.items()
    }
    peak = cpu_peak(sorted({kind for cost in costs.values() for kind in cost.operations}), threads)
    took = {stage.name: stage.median for stage in measured.stages}
    rows = []
    for name, cost in costs.items():
        limit = limit_of(cost, peak)
        seconds = {"backbone": took.get("evaluation 1"), "vae_decoder": took.get("vae")}.get(name)
        rows.append(
            {
                "network": name,
                "operations": cost.total_operations,
                "weight_bytes": cost.weight_bytes,
                "port_bytes": cost.port_bytes,
                "limit_s": limit.seconds,
                "bound": limit.bound,
                "measured_s": seconds,
                "share": None if seconds is None else limit.seconds / seconds,
                "peak": peak.source,
            }
        )
    return rows


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"platform": platform.platform(), "python": platform.python_version(), "cores": cores}


def _table(result: Mapping[str, Any]) -> str:
    """Ours stage by stage, then the baselines, then the roofline."""
    head = f"{result['bundle']}: {result['images']} x {result['width']}x{result['height']} px, {result['runs']} runs"
    lines = [head, f"{'':<22}{'median':>11}{'p99':>11}"]
    lines += [
        f"{stage['name']:<22}{_ms(stage['median']):>11}{_ms(stage['p99']):>11}"
        for stage in [*result["stages_s"], result["total_s"]]
    ]
    lines += [
        f"{f'peak memory, {kind}':<22}{size / (1 << 20):>7.0f} MiB" for kind, size in result["peak_bytes"].items()
    ]
    ours = result["total_s"]["median"] / result["images"]
    for other in result["baselines"]:
        name = f"{other['what']}, {other['mode']}"
        ratio = other["total_s"] / ours
        lines.append(
            f"{name:<22}{_ms(other['total_s']):>11}{_ms(other['total_p99_s']):>11}  {ratio:.1f} x ours a picture"
        )
    if result["roofline"]:
        lines.append(f"{'roofline':<22}{'GFLOP':>11}{'weights':>11}{'limit':>11}  bound    share")
        for row in result["roofline"]:
            share = "" if row["share"] is None else f"{row['share']:.0%}"
            lines.append(
                f"{'  ' + row['network']:<22}{row['operations'] / 1e9:>11.3f}{row['weight_bytes'] / 1e6:>8.1f} MB"
                f"{_ms(row['limit_s']):>11}  {row['bound']:<8} {share}"
            )
        lines.append(f"  ({result['roofline'][0]['peak']})")
    return "\n".join(lines)


def _draw(path: Path, result: Mapping[str, Any], measured: Measurement) -> None:
    """Write the timeline: ours as it ran, the baselines from their medians, laid end to end."""
    import io

    from runtime.image import write_files
    from runtime.timeline import draw

    rows: dict[str, Any] = {"ArcFlow": measured.timeline}
    for other in result["baselines"]:
        start, spans = 0.0, []
        for stage, seconds in other["stages_s"].items():
            spans.append((stage, start, start + seconds))
            start += seconds
        rows[f"{other['what']}, {other['mode']}"] = spans
    buffer = io.BytesIO()
    images, size = result["images"], f"{result['width']}x{result['height']} px"
    title = f"{result['bundle']}, {size}, {images} picture{'s' if images > 1 else ''}: the median run"
    draw(title, rows).save(buffer, "PNG")
    write_files({path: buffer.getvalue()})


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


if __name__ == "__main__":
    sys.exit(run(main))
