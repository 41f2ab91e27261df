"""Whether a student's FP8 scales serve it with a style LoRA as well: ``python benchmarks/style_scales.py``.

For each style and scale of it: the error that FP8 causes (relative L2 of the latent and of the image against the
same student unquantised, as the gate of a build measures it) with scales measured on the styled student itself and with
those of the student alone, how far the style moves the student, and the share of activations beyond the student's own
bounds.

Styles of ``tiny`` are trained here on its teacher (flow matching on the student's images, drawn over), which is what
a user's style LoRA is. On small random FLUX and Qwen-Image students they are random factors. Prints a table, then one
line of JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.style_loras import STYLES, random_style, trained_style
from foundation.cli import ArgumentParser, run
from foundation.measuring import begin, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from export.fp8.calibration import Calibration
    from export.students.subject import Subject

SCALES = (0.25, 0.5, 0.8, 1.0, 1.5, 2.0)
STEPS = 400
_HEAD = (
    "model",
    "style",
    "scale",
    "moved",
    "own: latent",
    "image",
    "base: latent",
    "image",
    "clipped",
    "worst",
    "over",
)


@dataclass(frozen=True)
class Row:
    """What was found for one style at one scale.

    moved: relative L2 between the latents of the styled and the plain student; own, base: what FP8 changes (latent,
    image) with either scales; clipped: share of the inputs of quantised layers beyond the plain student's bounds,
    over all layers and in the worst; excess: greatest own bound over the plain one, of a layer.
    """

    model: str
    style: str
    scale: float
    moved: float
    own: tuple[float, float]
    base: tuple[float, float]
    clipped: float
    worst_clipped: float
    excess: float


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print."""
    parser = ArgumentParser(prog="python benchmarks/style_scales.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of a style (default: %(default)s)")
    parser.add_argument("--models", default="tiny,flux,qwen", help="which to measure (default: %(default)s)")
    arguments = parser.parse_args(argv)
    from export.terminal import hush_libraries

    hush_libraries()
    begun, rows = begin(parser.prog, argv), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            for row in _measured(name, Path(folder), arguments.steps):
                rows.append(row)
                sys.stderr.write("  ".join(_cells(row)) + "\n")
    record = {**begun, "rows": [asdict(row) for row in rows]}
    tell(record, [_HEAD, *map(_cells, rows)], right=range(2, 11))
    return 0


def _cells(row: Row) -> tuple[str, ...]:
    shares = (f"{share:.2%}" for share in (row.moved, *row.own, *row.base))
    clipped = f"{row.clipped:.1e}", f"{row.worst_clipped:.1e}"
    return row.model, row.style, f"{row.scale:g}", *shares, *clipped, f"{row.excess:.2f}"


def _measured(name: str, folder: Path, steps: int) -> Iterator[Row]:
    """tiny in trained styles and a random one; small random students of the others in a random one."""
    from export.sources.models import MODELS
    from export.students.subject import open_subject

    if name == "tiny":
        bench, styles = _Bench(open_subject(MODELS[name]).digested(), folder), STYLES
    else:
        from tests.export import pipelines

        sources = getattr(pipelines, f"small_{name}")(folder / name)
        plain = open_subject(MODELS[name], str(sources.base), str(sources.adapter)).digested()
        bench, styles = _Bench(plain, folder, size=128), {}
    for style, draw in styles.items():
        path = trained_style(bench.plain, bench.prompted, draw, folder / f"{style}.safetensors", steps)
        yield from (bench.row(style, path, scale) for scale in SCALES)
    path = random_style(bench.plain, folder / f"{name}.safetensors")
    yield from (bench.row("random", path, scale) for scale in SCALES)


class _Bench:
    """A plain student, its scales, and what its images are compared with."""

    def __init__(self, plain: Subject, folder: Path, size: int | None = None) -> None:
        import torch

        from export.students.prompts import default_prompts, read_prompts

        self.plain, self.folder = plain, folder
        width, height = (size, size) if size else (plain.spec.limits.width.opt, plain.spec.limits.height.opt)
        self.size = (width, height)
        self.prompts = read_prompts(default_prompts(plain.spec.name))
        self.prompted = plain.prompted(self.prompts, width, height, torch.float32, torch.device("cpu"))
        self.shown = plain.prompted(self.prompts[:16], width, height, torch.float32, torch.device("cpu"))
        self.calibration = self.calibrate(plain)
        self.vae: Any = plain.network("vae_decoder").reference()

    def calibrate(self, subject: Subject) -> Calibration:
        import torch

        from export.fp8.observers import Method
        from export.networks.streaming import Placement
        from export.quality.measure import Run, measure

        width, height = self.size
        run = Run(
            backbone=subject.whole, student=subject.student.parents, sigmas=subject.sigmas(),
            prompts=self.prompts, width=width, height=height, method=Method.AMAX, percentile=0.0, dtype=torch.float32,
            device=torch.device("cpu"), placement=Placement.HOLD, batch=16,
        )  # fmt: skip
        return measure(run, self.prompted, self.folder / "state")

    def row(self, style: str, path: Path, scale: float) -> Row:
        """Measure one style at one scale."""
        import torch

        from export.fp8.policy import layer_of, select_layers, weight_of
        from export.fp8.simulation import fake_quantised
        from export.networks.base import INNER
        from export.networks.streaming import Placement, open_module
        from export.quality.gate import apart, measure_gates, relative_l2
        from export.quality.measure import linears
        from export.students.rollout import noise_of, rollout
        from export.students.subject import open_subject

        spec, plain = self.plain.spec, self.plain
        styled = open_subject(spec, str(plain.base), str(plain.adapter), [f"{path}:{scale}"]).digested()
        own, cpu = self.calibrate(styled), torch.device("cpu")
        network = styled.whole
        modules = [open_module(s.whole, torch.float32, cpu, Placement.HOLD) for s in (styled, plain)]
        inner: Any = getattr(modules[0], INNER)
        layers = [layer_of(w) for w in select_layers([weight_of(n) for n in linears(inner)], network.fp8_layers)]
        latent = plain.latent

        def decode(latents: Tensor) -> Tensor:
            images: Tensor = self.vae(latents=latents)[0]
            return images

        found = {}
        for name, calibration in (("own", own), ("base", self.calibration)):

            def quantised(calibration: Calibration = calibration, **ports: Tensor) -> Sequence[Tensor]:
                with fake_quantised(inner, {layer: calibration.amax[layer] for layer in layers}):
                    field: Sequence[Tensor] = modules[0](**ports)
                return field

            sigmas = styled.sigmas()
            ends = apart([(modules[0], self.shown), (quantised, self.shown)], sigmas)
            (gate,) = measure_gates(ends, decode, self.shown, latent, len(sigmas) - 1)
            found[name] = tuple(result.value for result in gate.results)
        channels = latent.channels * latent.patch**2
        tokens = self.shown.rows * self.shown.columns
        noise = torch.stack([noise_of(1_000_000 + i, tokens, channels) for i in range(16)])
        ends = []
        with clipped(inner, {layer: self.calibration.amax[layer] for layer in layers}) as counts:
            ends.append(rollout(modules[0], noise, self.shown.ports(slice(0, 16)), styled.sigmas()))
        ends.append(rollout(modules[1], noise, self.shown.ports(slice(0, 16)), styled.sigmas()))
        shares = {layer: over / total for layer, (over, total) in counts.items()}
        return Row(
            spec.name, style, scale, float(relative_l2(*ends).mean()), found["own"], found["base"],
            sum(over for over, _ in counts.values()) / sum(total for _, total in counts.values()),
            max(shares.values()), max(own.amax[layer] / self.calibration.amax[layer] for layer in layers),
        )  # fmt: skip


@contextmanager
def clipped(backbone: nn.Module, amax: Mapping[str, float]) -> Iterator[dict[str, tuple[int, int]]]:
    """In the block, inputs of the linears in ``amax`` are counted: (beyond the bound, in all) by layer."""
    counts = dict.fromkeys(amax, (0, 0))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            over, total = counts[name]
            counts[name] = (over + int((inputs[0].abs() > amax[name]).sum()), total + inputs[0].numel())

        return look

    handles = [backbone.get_submodule(name).register_forward_pre_hook(hook(name)) for name in amax]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    sys.exit(run(main))
