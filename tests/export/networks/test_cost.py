"""What the gate will take is known before it runs: operations, results and what of them is alive at once."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from export.assembling.estimate import estimate
from export.assembling.gate import choose_gate_run
from export.assembling.inputs import Build, inspect
from export.assembling.wanted import Wanted
from export.folders.places import Needs
from export.fp8.calibration import nominal, write_calibration
from export.networks.base import Network
from export.networks.cost import Cost, cost_of
from export.precision import Precision
from export.sources.models import choose
from export.students.subject import open_subject
from export.tensorrt.profiles import choose_shapes
from export.weights.files import TensorSet
from tests.export.pipelines import Sources, small_flux

WIDTH = 8


class _Module(nn.Module):
    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = nn.Linear(WIDTH, WIDTH, bias=False)
        self._compute = compute

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self._compute(self.network, x),)


def cost(compute: Callable[[Any, Tensor], Tensor], heads: Container[int] | None = None, **sizes: int) -> Cost:
    network = Network(
        name="x",
        ports_in={"x": ("float32", ("batch", "tokens", WIDTH))},
        ports_out={},
        bounds={},
        build=lambda _: _Module(compute),
        weights=TensorSet(Path(), (), {}),
        reference=lambda: lambda **_: (),
        examples=lambda *_: {},
        parity_sizes=(),
    )
    return cost_of(network, sizes, heads)


def test_operations_and_results_are_counted() -> None:
    one = 4 * 2 * 3 * WIDTH
    found = cost(lambda linear, x: (linear(x) + 1.0).exp().view(-1), batch=2, tokens=3)
    assert found == Cost(operations=2 * 2 * 3 * WIDTH * WIDTH, made=3 * one, peak=2 * one)


def test_what_is_kept_counts_until_it_is_let_go() -> None:
    one = 4 * 5 * WIDTH

    def keep(linear: nn.Module, x: Tensor) -> Tensor:
        parts = [linear(x) for _ in range(4)]
        total = sum(parts, torch.zeros_like(x))
        parts.clear()
        return total * 2.0

    found = cost(keep, batch=1, tokens=5)
    assert 5 * one <= found.peak <= 7 * one
    assert found.made == (4 + 1 + 4 + 1) * one


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_matrix_of_scores_counts_where_it_is_made(contiguous: bool) -> None:
    tokens, scores = 1000, 4 * 1000 * 1000

    def attend(_: nn.Module, x: Tensor) -> Tensor:
        x = x[:, None] if contiguous else x.transpose(1, 2).contiguous().transpose(1, 2)[:, None]
        return scaled_dot_product_attention(x, x, x)

    found = cost(attend, batch=1, tokens=tokens)
    assert found.operations == 4 * tokens * tokens * WIDTH
    assert (found.peak >= scores) is not contiguous


@pytest.mark.parametrize(("heads", "scores"), [(range(WIDTH + 1), 0), (range(WIDTH), 2), ((), 2)])
def test_heads_without_a_kernel_make_all_scores_and_their_softmax(heads: Container[int], scores: int) -> None:
    tokens = 1000
    found = cost(lambda _, x: scaled_dot_product_attention(*[x[:, None]] * 3), heads, batch=1, tokens=tokens)
    assert 0 <= found.peak - scores * 4 * tokens**2 < 10 * 4 * tokens * WIDTH


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return small_flux(tmp_path_factory.mktemp("flux"))


def inputs(flux: Sources, precision: Precision, size: str, root: Path, *only: str) -> Build:
    spec = choose("flux")
    subject = open_subject(spec, str(flux.base), str(flux.adapter))
    scales = root / "scales.json"
    write_calibration(nominal([name.removesuffix(".weight") for name in subject.student.weights], ""), scales)
    wanted = Wanted(
        spec=spec, precision=precision, target="onnx", out=root / "out", workdir=root / "work",
        shapes=choose_shapes(spec.limits, size, "1"), only=only,
        calibration=scales if precision is Precision.FP8 else None,
    )  # fmt: skip
    return inspect(wanted, subject)


def needs(build: Build) -> Needs:
    return estimate(build, choose_gate_run(build))


def test_the_estimate_grows_with_what_the_gate_generates(flux: Sources, tmp_path: Path) -> None:
    plain = needs(inputs(flux, Precision.BF16, "1024x1024", tmp_path))
    small, large = (needs(inputs(flux, Precision.FP8, size, tmp_path)) for size in ("320x320", "1024x1024"))
    # Measured in this process: a peak of 0.93 GB at 320, of 2.35 GB and 56 CPU seconds at 1024 pixels.
    assert 0.93e9 < small.memory < 1.2e9
    assert 2.35e9 < large.memory < 3.0e9
    assert large.memory > plain.memory
    assert (plain.seconds or 0) < (small.seconds or 0) < (large.seconds or 0)
    without = inputs(flux, Precision.FP8, "1024x1024", tmp_path, "clip", "t5")
    assert choose_gate_run(without) is None
