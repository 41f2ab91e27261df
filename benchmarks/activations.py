"""How near the estimate of a plan's working memory is to its builder's own: ``python benchmarks/activations.py``.

Networks of true width and few blocks (their VAEs whole) are exported from hollow files and built by TensorRT for RTX,
which needs no GPU and says what the plan will work in. Prints a table in Markdown; 2 GB of memory, 2 GB of disk.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from foundation.cli import ArgumentParser, run

if TYPE_CHECKING:
    from benchmarks.fullsize.shapes import Model
    from engines.schema import PlanMemory

_BLOCKS = ("num_layers", "num_single_layers", "num_decoder_layers", "num_hidden_layers")
_TOKENS = 4096
"""Of the vocabulary, whose size no activation depends on."""


@dataclass(frozen=True)
class Case:
    """A network to compare: its model, precision, size of image, target, and the blocks that are left of each kind."""

    model: str
    network: str
    precision: str
    size: str
    target: str = "sm120"
    batch: str = "1"
    blocks: int = 1


CASES = (
    Case("flux", "vae_decoder", "bf16", "512x512"),
    Case("flux", "vae_decoder", "bf16", "1024x1024"),
    Case("flux", "vae_decoder", "bf16", "1536x1536"),
    Case("flux", "vae_decoder", "bf16", "1536x1536", batch="4"),
    Case("qwen", "vae_decoder", "bf16", "1024x1024"),
    Case("qwen", "vae_decoder", "bf16", "1328x1328"),
    Case("qwen", "vae_decoder", "bf16", "1664x1664"),
    Case("flux", "backbone", "fp8", "1024x1024"),
    Case("flux", "backbone", "fp8", "1024x1024", target="sm89"),
    Case("flux", "backbone", "bf16", "1024x1024"),
    Case("qwen", "backbone", "fp8", "1328x1328"),
    Case("qwen", "backbone", "bf16", "1328x1328"),
    Case("flux", "conditioner", "fp8", "1024x1024"),
    Case("flux", "t5", "fp8", "1024x1024"),
    Case("flux", "t5", "bf16", "1024x1024"),
    Case("qwen", "text", "fp8", "1328x1328"),
    Case("qwen", "text", "bf16", "1328x1328"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Build and compare, a line each. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/activations.py", description="Compare estimates with a builder's.")
    parser.add_argument("--network", action="append", help="this network alone; may be given again (default: all)")
    arguments = parser.parse_args(argv)
    print("| model | network | precision | size | batch | target | estimated MB | builder's MB | ratio |")
    print("|---|---|---|---|---:|---|---:|---:|---:|")
    for case in CASES:
        if not arguments.network or case.network in arguments.network:
            with TemporaryDirectory() as folder:
                estimated, memory = compare(case, Path(folder))
            told = f"{estimated / 1e6:,.0f} | {memory.activations / 1e6:,.0f} | {memory.activations / estimated:.2f}"
            named = f"{case.model} | {case.network} | {case.precision} | {case.size} | {case.batch} | {case.target}"
            print(f"| {named} | {told} |", flush=True)
    return 0


def compare(case: Case, folder: Path) -> tuple[int, PlanMemory]:
    """Estimated bytes, and what the builder says. folder: to work in. Raises ArcFlowError."""
    from benchmarks.fullsize.shapes import published
    from benchmarks.fullsize.synthesise import write_hollow_model
    from engines.memory.extents import extents_of_profiles
    from export.assembling.estimate import activations
    from export.assembling.inputs import inspect
    from export.assembling.manifest import outline
    from export.assembling.stages import build_networks
    from export.assembling.wanted import Wanted
    from export.errors import EngineError
    from export.fp8.calibration import nominal, write_calibration
    from export.fp8.policy import layer_of
    from export.precision import Precision
    from export.reporting import silent
    from export.sources.models import choose
    from export.students.subject import open_subject
    from export.tensorrt.build import build_plan
    from export.tensorrt.plans import network_profiles, prepare
    from export.tensorrt.profiles import choose_shapes

    write_hollow_model(_shallow(published(case.model), case.blocks), folder, rank=8)
    spec = choose(case.model)
    subject = open_subject(spec, str(folder / "base"), str(folder / "adapter"))
    scales, fp8 = folder / "scales.json", case.precision == Precision.FP8
    if fp8:
        write_calibration(nominal(map(layer_of, subject.student.weights), ""), scales)
    wanted = Wanted(
        spec=spec, precision=Precision(case.precision), target=case.target, out=folder / "out",
        workdir=folder / "work", shapes=choose_shapes(spec.limits, case.size, case.batch), only=(case.network,),
        calibration=scales if fp8 else None,
    )  # fmt: skip
    build = inspect(wanted, subject)
    manifest = outline(build)
    profiles = network_profiles(manifest, wanted.shapes)
    (task,), (exported,) = build.tasks, build_networks(build, silent)
    setup = prepare(case.target, case.precision, wanted.shapes, folder)
    report = build_plan(
        exported.onnx, folder / "plan", target=setup.target, profile=profiles[case.network], toolkit=setup.toolkit
    )
    if report.memory is None:
        raise EngineError(f"{report.flavour} {report.version} does not say what a plan works in")
    return activations(task, extents_of_profiles(manifest.networks, profiles)[case.network]), report.memory


def _shallow(model: Model, blocks: int) -> Model:
    """The model with so many blocks of each kind, and a short vocabulary; widths stay."""

    def cut(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        cut_down = {key: min(found, blocks) if key in _BLOCKS else cut(found) for key, found in value.items()}
        if "vocab_size" in value:
            cut_down["vocab_size"] = min(value["vocab_size"], _TOKENS)
        if isinstance(value.get("layer_types"), list):
            cut_down["layer_types"] = value["layer_types"][:blocks]
        return cut_down

    return replace(model, files={path: cut(copy.deepcopy(dict(content))) for path, content in model.files.items()})


if __name__ == "__main__":
    sys.exit(run(main))
