"""The fewest layers that must stay high: found, remembered, and the same whether the student is held or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.schema import Gate, GateResult
from export.assembling import gate as gates
from export.assembling.gate import GateRun, choose_gate_run, hold
from export.assembling.inputs import Build, inspect
from export.assembling.wanted import Attention, Wanted
from export.errors import GateError
from export.fp8.simulation import fake_quantised
from export.networks.streaming import Placement
from export.precision import Precision
from export.quality import own
from export.quality.keep_high import Kept, search
from export.sources.models import choose
from export.students.subject import open_subject
from export.tensorrt.profiles import choose_shapes
from tests.export.pipelines import Sources, small_flux, small_qwen

LAYERS = [f"block.{number}" for number in range(60)]


def ranked(needed: bool) -> list[str]:
    return LAYERS if needed else []


class _Errors:
    """A student whose error is 1 % and what each quantised layer adds."""

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, list[int]()

    def trial(self, choices: Sequence[Kept]) -> list[Gate]:
        self.asked += [len(kept) for kept in choices]
        errors = [1.0 + sum(60 - LAYERS.index(layer) for layer in set(LAYERS) - set(kept)) / 100 for kept in choices]
        return [
            Gate(nfe=2, images=1, width=16, height=16, results=[GateResult("latent", error, self.limit)])
            for error in errors
        ]

    def fewest(self) -> int:
        return next(n for n in range(61) if self.trial([tuple(LAYERS[:n])])[0].results[0].value <= self.limit)


@pytest.mark.parametrize("limit", [20.0, 19.0, 15.0, 10.0, 6.0])
def test_no_fewer_layers_hold(limit: float, tmp_path: Path) -> None:
    errors = _Errors(limit)
    held = search(errors.trial, ranked, limit, 8, tmp_path / "notes.json")
    assert held.gate.results[0].value <= limit
    assert len(held.kept) == errors.fewest()
    assert held.kept == tuple(LAYERS[: len(held.kept)])


def test_a_limit_that_half_of_the_layers_cannot_hold_is_missed(tmp_path: Path) -> None:
    held = search(_Errors(2.0).trial, ranked, 2.0, 8, tmp_path / "notes.json")
    assert len(held.kept) == 30 and held.gate.results[0].value > 2.0


def test_one_round_is_within_a_step(tmp_path: Path) -> None:
    held = search(_Errors(15.0).trial, ranked, 15.0, 1, tmp_path / "notes.json")
    fewest = _Errors(15.0).fewest()
    assert fewest <= len(held.kept) <= 2 * fewest


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    errors, notes = _Errors(15.0), tmp_path / "notes.json"

    def stopping(choices: Sequence[Kept]) -> list[Gate]:
        if len(errors.asked) > 1:
            raise KeyboardInterrupt
        return errors.trial(choices)

    with pytest.raises(KeyboardInterrupt):
        search(stopping, ranked, 15.0, 8, notes)
        search(stopping, ranked, 15.0, 8, notes)
    again = _Errors(15.0)

    def never(_: bool) -> list[str]:
        raise AssertionError("it was ranked already")

    held = search(again.trial, never, 15.0, 8, notes)
    assert 0 not in again.asked
    assert (
        held
        == search(again.trial, never, 15.0, 8, notes)
        == search(_Errors(15.0).trial, ranked, 15.0, 8, tmp_path / "x")
    )
    notes.write_text("{")
    assert search(again.trial, ranked, 15.0, 8, notes) == held


def test_what_was_measured_serves_every_limit(tmp_path: Path) -> None:
    errors = _Errors(0.0)
    assert search(errors.trial, ranked, 25.0, 8, tmp_path / "notes.json").kept == ()
    held = search(errors.trial, ranked, 15.0, 8, tmp_path / "notes.json")
    assert errors.asked.count(0) == 1
    assert held.gate.results[0].value <= held.gate.results[0].limit == 15.0


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Of a small FLUX pipeline."""
    return _inspected("flux", tmp_path_factory.mktemp("flux"))


def _inspected(model: str, root: Path) -> Build:
    """A small pipeline's build, with its own scales."""
    sources: Sources = {"flux": small_flux, "qwen": small_qwen}[model](root)
    spec = choose(model)
    subject = open_subject(spec, str(sources.base), str(sources.adapter)).digested(root / "digests.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "SECONDS", 0.0)
        scales = own.choose_run(subject).scales(subject, root)
    wanted = Wanted(
        spec=spec, precision=Precision.FP8, target="onnx", out=root / "out", workdir=root / "work",
        shapes=choose_shapes(spec.limits, "256x256", "1"), calibration=scales,
    )  # fmt: skip
    return inspect(wanted, subject).digested()


def _at(build: Build, folder: Path, limit: float, **changes: object) -> Build:
    return replace(build, wanted=replace(build.wanted, workdir=folder, gate=limit, **changes))  # type: ignore[arg-type]


def _small(build: Build) -> GateRun:
    gate_run = choose_gate_run(build)
    assert gate_run is not None and gate_run.small
    run = replace(gate_run.run, prompts=gate_run.run.prompts[:2])
    return replace(gate_run, run=run)


def _streamed(build: Build) -> GateRun:
    """The same, measured as a large student is."""
    small = _small(build)
    return replace(small, run=replace(small.run, placement=Placement.STREAM), small=False)


def _latent(build: Build) -> float:
    assert build.gate is not None
    return build.gate.results[0].value


def test_the_fewest_layers_stay_high_and_the_rest_holds_the_limit(build: Build, tmp_path: Path) -> None:
    plain = hold(_at(build, tmp_path, 1.0), _small(build))
    assert plain.tasks == build.tasks
    limit = 0.8 * max(result.value for result in plain.gate.results)  # type: ignore[union-attr]
    held = hold(_at(build, tmp_path, limit), _small(build))
    assert _latent(held) <= limit
    assert held.fp8 is not None and build.fp8 is not None
    kept = held.fp8.keep_high[len(build.fp8.keep_high) :]
    before, after = (next(t for t in b.tasks if t.quantised).quantised for b in (build, held))
    assert before - after == {f"{layer}.weight" for layer in kept} != set()
    with pytest.raises(GateError, match=r"even with the .* layers kept high that it hurts most"):
        hold(_at(build, tmp_path, 1e-6), _small(build))


@pytest.mark.parametrize("model", ["flux", "qwen"])
def test_a_streamed_student_is_measured_as_one_that_is_held(model: str, build: Build, tmp_path: Path) -> None:
    build = build if model == "flux" else _inspected(model, tmp_path)
    told: list[tuple[str, int, int]] = []
    whole = hold(_at(build, tmp_path / "a", 1.0), _small(build))
    streamed = hold(
        _at(build, tmp_path / "b", 1.0),
        _streamed(build),
        lambda what, done, total, note="": told.append((what, done, total)),
    )
    for one, other in zip(whole.gate.results, streamed.gate.results, strict=True):  # type: ignore[union-attr]
        assert other.value == pytest.approx(one.value, rel=0.02)  # Sums over other batches round another way.
    ticks = [(done, total) for what, done, total in told if what == "gate"]
    assert ticks[-2][0] == ticks[-2][1] > 20, "every layer of every evaluation is counted"


def test_a_streamed_student_ranks_layers_by_their_own_output(build: Build, tmp_path: Path) -> None:
    gate_run = _streamed(build)
    plain = hold(_at(build, tmp_path, 1.0), gate_run)
    limit = 0.9 * max(result.value for result in plain.gate.results)  # type: ignore[union-attr]
    held = hold(_at(build, tmp_path, limit), gate_run)
    assert held.fp8 is not None and _latent(held) <= limit


def test_a_large_student_gets_as_much_as_the_time_allows(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "is_small", lambda network: False)
    limits = build.wanted.spec.limits
    found = []
    for seconds in (0.0, float("inf")):
        monkeypatch.setattr(gates, "SECONDS", seconds)
        gate_run = choose_gate_run(build)
        assert gate_run is not None
        found.append((len(gate_run.run.prompts), gate_run.run.width))
    assert found == [(1, limits.width.opt // 4 // 16 * 16), (16, limits.width.opt)]


def test_attention_of_the_unquantised_student_stays_as_it_is(build: Build, tmp_path: Path) -> None:
    """In FP8 as well, the error is of its own, and only on one side.

    It need not be larger: on a student this small, errors may cancel, by the processor's rounding.
    """
    assert build.fp8 is not None
    fp8 = replace(build.fp8, attention=Attention.FP8)
    harder = replace(build, fp8=fp8)
    plain, both = (hold(_at(b, tmp_path / n, 1.0), _small(build)) for n, b in (("a", build), ("b", harder)))
    assert _latent(plain) != _latent(both) and 0.9 * _latent(plain) < _latent(both) < 10 * _latent(plain)


def test_shares_of_a_batch_are_quantised_each_in_its_own_way() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    x = torch.randn(2, 5, 16)
    bounds = {"0": 3.0, "1": None}
    with torch.no_grad():
        apart = [network(x)]
        for share in (bounds, {"0": 3.0}):
            with fake_quantised(network, share):
                apart.append(network(x))
        told: list[str] = []
        with fake_quantised(network, {}, bounds, {"0": 3.0}, watch=lambda name, given, fp8: told.append(name)):
            abreast = network(torch.cat([x, x, x])).chunk(3)
    for one, other in zip(apart, abreast, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(apart[0], apart[1], atol=1e-4)
    assert told == ["0", "1"]
