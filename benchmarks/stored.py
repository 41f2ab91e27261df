"""What it costs to store frozen weights in FP8: ``python benchmarks/stored.py``.

Of weights: relative L2 of what FP8 leaves of them, those of ``tiny``'s teacher and normal draws in the shapes of
FLUX.1-dev and Qwen-Image. Of ``tiny``, computing in float32 with its weights stored in bfloat16 and in FP8 against
float32: the teacher's velocity on its own way, its endpoint, and that of the two-step student. With ``--iterations``,
of students that are distilled from either: the error of their endpoint from the float32 teacher's under the same noise,
of prompts that training does not have. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from foundation.cli import ArgumentParser, run
from foundation.measuring import begin, tell

if TYPE_CHECKING:
    from torch import Tensor, nn

    from arcflow.recipe import Recipe
    from arcflow.students import Student

KEPT = ("bf16", "fp8")
LEVELS = 10
"""Every how many of the teacher's steps its velocity is looked at."""
_ROWS = 3072
"""Of a drawn weight: each row is stored by itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print. Raises ArcFlowError."""
    parser = ArgumentParser(prog="python benchmarks/stored.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=60, help="how many to sample (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=0, help="distil for so many, too (default: not at all)")
    arguments = parser.parse_args(argv)
    from arcflow.recipe import load_recipe
    from export.terminal import hush_libraries

    hush_libraries()
    figures: dict[str, Any] = begin(parser.prog, argv)
    figures["weights"] = {name: weights_error(name) for name in ("tiny", "flux", "qwen")}
    bench = Bench(load_recipe("tiny"), arguments.images)
    figures["velocity"] = {kept: bench.velocity_errors(kept) for kept in KEPT}
    figures["endpoint"] = {kept: bench.endpoint_errors(kept) for kept in KEPT}
    lines = [("FP8 weights, relative L2", "least", "mean", "most")]
    lines += [(f"  {name}", *(f"{value:.2%}" for value in found)) for name, found in figures["weights"].items()]
    lines.append(("tiny, relative L2 from float32", *KEPT))
    for part in ("velocity", "endpoint"):
        both = [figures[part][kept] for kept in KEPT]
        lines += [(f"  {part}, {name}", *(f"{each[name]:.2%}" for each in both)) for name in both[0]]
    if arguments.iterations:
        figures["distilled"] = found = bench.distilled(arguments.iterations)
        shares = (f"{found[kept]:.2%}" for kept in KEPT)
        lines.append((f"  error of a student after {arguments.iterations} iterations", *shares))
    tell(figures, lines, right=range(1, 4))
    return 0


def weights_error(name: str) -> tuple[float, float, float]:
    """Least, mean and greatest relative L2 over the weights of the blocks' linears (for drawn ones, over shapes)."""
    import torch

    from arcflow.evaluation.metrics import relative_l2
    from arcflow.sources.fp8 import from_codes, quantise_rows

    found = []
    for weight in _weights(name):
        with torch.no_grad():
            found.append(float(relative_l2(from_codes(*quantise_rows(weight))[None], weight[None])))
    return min(found), sum(found) / len(found), max(found)


def _weights(name: str) -> Iterator[Tensor]:
    """Those of tiny's teacher; for another recipe some rows of each shape, normally distributed."""
    import torch

    from arcflow.needs.inventory import meta_backbone
    from arcflow.recipe import load_recipe
    from arcflow.sources.stored import Fp8Linear, store_linears

    backbone = meta_backbone(load_recipe(name))
    store_linears(backbone)
    stored = {n: m for n, m in backbone.named_modules() if isinstance(m, Fp8Linear)}
    if name == "tiny":
        plain = _teacher()
        yield from (plain.get_submodule(layer).weight for layer in stored)  # type: ignore[misc]
        return
    generator = torch.Generator().manual_seed(0)
    for rows, columns in sorted({(module.out_features, module.in_features) for module in stored.values()}):
        yield torch.randn(min(rows, _ROWS), columns, generator=generator)


def _teacher() -> nn.Module:
    """tiny's backbone in float32."""
    import torch

    from arcflow.sources.base import find_base
    from arcflow.sources.weights import open_backbone

    return open_backbone(find_base(ROOT / "models" / "tiny" / "teacher", "flux"), "fp32", torch.device("cpu"))


class Bench:
    """tiny, the noise and the prompts that all are measured with, and where the float32 teacher and student end."""

    def __init__(self, recipe: Recipe, images: int) -> None:
        import torch

        from arcflow.adapter import read_adapter
        from arcflow.students import architecture
        from arcflow.tiny.captions import evaluation_prompts
        from arcflow.tiny.teacher_folder import SIDE, open_teacher

        self.recipe, self.plain = recipe, _teacher()
        folder = open_teacher(ROOT / "models" / "tiny" / "teacher")
        self.condition = folder.condition([text for text, _ in evaluation_prompts(images)], recipe.guidance)
        first, shape = recipe.evaluate.first_seed, (SIDE * SIDE, folder.packed_channels)
        seeds = range(first, first + images)
        self.noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        adapter = ROOT / "models" / "tiny" / "adapter"
        self.arch = architecture(recipe.architecture)
        self.trained = read_adapter(adapter).config.policy.conditioning_dtype
        student = self.student("fp32", adapter)
        self.end, self.way = self.teacher_way(student)
        self.student_end = self.two_steps(student)

    def student(self, kept: str, adapter: Path) -> Student:
        """The student of an adapter over frozen weights that are kept so; all but FP8 is computed with in float32."""
        import torch

        from arcflow.adapter import read_adapter, trained_tensors
        from arcflow.sources.stored import as_frozen
        from arcflow.students import Student

        student = Student(as_frozen(deepcopy(self.plain), kept), self.recipe.student).eval()
        found = read_adapter(adapter)
        values = dict(found.whole)
        for module, (a, b) in found.lora.items():
            values |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        with torch.no_grad():
            for name, tensor in trained_tensors(student).items():
                tensor.copy_(values[name])
        for parameter in student.parameters():
            if parameter.dtype == torch.bfloat16:
                parameter.data = parameter.data.float()
        return student

    def teacher_way(self, student: Student) -> tuple[Tensor, dict[float, Tensor]]:
        """Where the teacher inside a student ends, and its states by noise level."""
        from arcflow.sampling import sample_teacher

        steps, shift = self.recipe.evaluate.reference_steps, self.recipe.shift
        with student.as_teacher() as teacher:
            return sample_teacher(self.arch, teacher, self.noise, self.condition, steps, shift, trained=self.trained)

    def two_steps(self, student: Student) -> Tensor:
        """Where a student ends."""
        import torch

        from arcflow.sampling import sample_student

        nfe, shift, ratio = self.recipe.distill.nfe, self.recipe.shift, self.recipe.distill.final_step_ratio
        with torch.no_grad():
            return sample_student(
                self.arch, student.backbone, self.noise, self.condition, nfe, shift, ratio, trained=self.trained
            )[0]

    def velocity_errors(self, kept: str) -> dict[str, float]:
        """Mean relative L2 of the teacher's velocity, at the float32 teacher's own states, by noise level."""
        import torch

        from arcflow.evaluation.metrics import relative_l2
        from arcflow.sampling import teacher_velocity

        stored, found = self.student(kept, ROOT / "models" / "tiny" / "adapter"), {}
        for level, x in list(self.way.items())[:-1:LEVELS]:
            sigma = torch.full((len(x),), level)
            wanted = teacher_velocity(self.arch, self.plain, x, sigma, self.condition, trained=self.trained)
            with stored.as_teacher() as teacher:
                velocity = teacher_velocity(self.arch, teacher, x, sigma, self.condition, trained=self.trained)
            found[f"sigma {level:.3f}"] = float(relative_l2(velocity, wanted).mean())
        return found

    def endpoint_errors(self, kept: str) -> dict[str, float]:
        """Mean relative L2 of the endpoints of teacher and student."""
        from arcflow.evaluation.metrics import relative_l2

        student = self.student(kept, ROOT / "models" / "tiny" / "adapter")
        found = {
            f"teacher, {self.recipe.evaluate.reference_steps} steps": (self.teacher_way(student)[0], self.end),
            f"student, {self.recipe.distill.nfe} evaluations": (self.two_steps(student), self.student_end),
        }
        return {name: float(relative_l2(*pair).mean()) for name, pair in found.items()}

    def distilled(self, iterations: int) -> dict[str, Any]:
        """Mean error of students that were distilled from weights kept so, run over float32 ones; and the pairs'."""
        from arcflow.distill import choose_prompts, distil
        from arcflow.evaluation.metrics import paired_gain, relative_l2
        from arcflow.sources.base import find_base

        base, errors = find_base(ROOT / "models" / "tiny" / "teacher", self.recipe.architecture), {}
        loop = replace(self.recipe.distill.loop, iterations=iterations, precision="bf16")  # As frozen weights need it.
        with tempfile.TemporaryDirectory() as folder:
            for kept in KEPT:
                settings = replace(self.recipe.distill, frozen=kept, loop=loop)  # type: ignore[arg-type]
                recipe, out = replace(self.recipe, distill=settings), Path(folder) / f"{kept}-out"
                distil(recipe, base, choose_prompts(recipe), recipe.student, Path(folder) / kept, out)
                errors[kept] = relative_l2(self.two_steps(self.student("fp32", out)), self.end)
        means = {kept: float(error.mean()) for kept, error in errors.items()}
        return {**means, "gain of bf16": paired_gain(errors["bf16"], errors["fp8"])}


if __name__ == "__main__":
    sys.exit(run(main))
