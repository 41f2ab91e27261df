"""Calibration: what observers remember, the file, the streamed run, and the command for every architecture."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import calibrate
from export.errors import CalibrationError, WeightsError
from export.fp8.calibration import Calibration, nominal, read_calibration, write_calibration
from export.fp8.numbers import FP8_MAX, fake_quantise
from export.fp8.observers import Method, Observer, Record
from export.fp8.policy import block_of, layer_of, select_layers, weight_of
from export.networks.streaming import Placement, open_module
from export.quality import measure
from export.sources.models import MODELS
from export.students.prompts import PROMPTS, default_prompts, read_prompts
from export.students.subject import Subject, open_subject
from export.weights.files import TensorInfo, Weights
from foundation.cli import run
from tests.export.conftest import Sources
from tests.export.pipelines import CAPTIONS, small_flux, small_qwen

DIGEST = "5" * 64
CPU = torch.device("cpu")


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_an_observer_sees_the_same_in_one_piece_and_in_many(values: list[float], pieces: int) -> None:
    whole, parts = Observer(), Observer()
    tensor = torch.tensor(values)
    whole.see(tensor, True)
    for chunk in tensor.chunk(pieces):
        parts.see(chunk, True)
    assert (whole.amax, whole.values) == (parts.amax, parts.values) == (float(tensor.abs().max()), len(values))
    assert torch.equal(whole.counts, parts.counts)
    again = Observer.from_record(msgspec.json.decode(msgspec.json.encode(parts.to_record()), type=Record))
    assert torch.equal(again.counts, parts.counts)
    assert (again.amax, again.values) == (parts.amax, parts.values)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9, 100.0])
def test_a_percentile_is_numpys_within_a_bin(percentile: float) -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    observer = Observer()
    observer.see(values, True)
    truth = float(np.percentile(values.abs().numpy(), percentile))
    assert truth <= observer.bound(Method.PERCENTILE, percentile) <= truth * (1 + 1 / 16)


def test_the_mse_bound_beats_amax_where_it_can() -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 1000.0  # FP8's range is wide: one outlier costs little
    tight = torch.cat([1e-4 * values[1:], torch.tensor([10.0])])
    for sample in (values, tight):
        observer = Observer()
        observer.see(sample, True)
        errors = {}
        for method in (Method.AMAX, Method.MSE):
            bound = observer.bound(method, 0.0)
            assert 0 < bound <= observer.amax
            errors[method] = float((fake_quantise(sample, bound / FP8_MAX) - sample).square().sum())
        assert errors[Method.MSE] <= errors[Method.AMAX] * 1.02


def test_an_observer_of_nothing_and_of_zeros() -> None:
    observer = Observer()
    observer.see(torch.empty(0), True)
    assert observer.values == 0
    observer.see(torch.zeros(3), True)
    assert [observer.bound(method, 99.0) for method in Method] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        Observer().see(torch.tensor([1.0, value]), False)


def test_a_file_is_read_back_and_written_the_same(tmp_path: Path) -> None:
    calibration = nominal(["b", "a"], DIGEST)
    for name in ("one", "two"):
        write_calibration(calibration, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = read_calibration(tmp_path / "one")
    assert again == calibration
    assert again.synthetic
    assert again.digest == calibration.digest != msgspec.structs.replace(calibration, synthetic=False).digest
    assert again.input_scales(["a.weight"]) == {"a.weight": 32.0 / 448.0}


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


FAULTS = {
    "another version": ({"schema_version": 2}, "schema version 2"),
    "unknown key": ({"more": 1}, "is no calibration file .*more"),
    "negative": ({"amax": {"a": -1.0}}, "is no calibration file"),
    "unknown method": ({"method": "guess"}, "is no calibration file"),
    "another student's parents": (
        {"parents": {"base": "b", "adapter": "a", "loras": []}},
        "names another student than it was measured on",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_is_refused_with_the_command(fault: str, tmp_path: Path) -> None:
    changes, message = FAULTS[fault]
    path = tmp_path / "c.json"
    write_calibration(nominal(["a"], DIGEST), path)
    _edit(path, **changes)
    with pytest.raises(CalibrationError, match=message) as error:
        read_calibration(path)
    assert "python -m export.calibrate" in str(error.value)


def test_a_missing_file_and_a_missing_layer(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read the calibration"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="lacks 1 layers"):
        nominal(["a"], DIGEST).input_scales(["a.weight", "b.weight"])


def test_the_shipped_prompts_are_many_and_varied() -> None:
    prompts = read_prompts(PROMPTS / "calibration.txt")
    assert len(set(prompts)) == len(prompts) >= 100
    lengths = [len(prompt) for prompt in prompts]
    assert min(lengths) < 10 < 300 < max(lengths)
    assert sum(any("\u4e00" <= c <= "\u9fff" for c in prompt) for prompt in prompts) >= 5
    assert default_prompts("flux") == default_prompts("qwen") == PROMPTS / "calibration.txt"


def test_the_embedded_models_prompts_are_captions_it_was_trained_on() -> None:
    from arcflow.tiny.captions import training_captions

    assert set(read_prompts(default_prompts("tiny"))) <= set(training_captions())


@pytest.mark.parametrize(
    ("text", "number", "message"), [("# none\n\n", None, "has no prompts"), ("a\nb\n", 3, "--num is 3")]
)
def test_prompts_that_cannot_be_used(text: str, number: int | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_prompts(tmp_path / "p.txt", number)
    with pytest.raises(CalibrationError, match="cannot read the prompts"):
        read_prompts(tmp_path / "none.txt")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    sources = small_flux(tmp_path_factory.mktemp("flux"))
    return open_subject(MODELS["flux"], str(sources.base), str(sources.adapter)).digested()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    sources = small_qwen(tmp_path_factory.mktemp("qwen"))
    return open_subject(MODELS["qwen"], str(sources.base), str(sources.adapter)).digested()


@functools.cache
def _pipeline(name: str, base: Path) -> Any:
    import diffusers

    return getattr(diffusers, name).from_pretrained(base, local_files_only=True)


def _encode(subject: Subject, prompts: list[str]) -> dict[str, torch.Tensor]:
    return dict(subject.prompted(prompts, 32, 32, torch.float32, CPU).encodings)


def test_flux_prompts_are_encoded_as_diffusers_does(flux: Subject) -> None:
    found = _encode(flux, list(CAPTIONS))
    with torch.no_grad():
        sequence, pooled, _ = _pipeline("FluxPipeline", flux.base).encode_prompt(
            list(CAPTIONS), max_sequence_length=512
        )
    assert torch.allclose(found["pooled_projections"], pooled, atol=1e-5)
    assert torch.allclose(found["encoder_hidden_states"], sequence, atol=1e-5)


def test_qwen_prompts_are_encoded_as_diffusers_does(qwen: Subject) -> None:
    found = _encode(qwen, list(CAPTIONS))
    with torch.no_grad():
        sequence, mask = _pipeline("QwenImagePipeline", qwen.base).encode_prompt(list(CAPTIONS))
    assert torch.equal(found["encoder_hidden_states_mask"], mask)
    assert torch.allclose(found["encoder_hidden_states"], sequence, atol=1e-4)


class _Counted(Weights):
    """Weights that know how many bytes of what they gave are still alive, at most."""

    def __init__(self, inner: Weights) -> None:
        self.inner, self.source, self.alive, self.peak = inner, inner.source, 0, 0

    def __getitem__(self, name: str) -> TensorInfo:
        return self.inner[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, name: str) -> torch.Tensor:
        tensor = self.inner.read(name).float().clone()
        size = tensor.untyped_storage().nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(tensor.untyped_storage(), self._freed, size)
        return tensor

    def _freed(self, size: int) -> None:
        self.alive -= size

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.read(name)[start:stop]


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_streaming_computes_the_same_and_holds_little(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name).whole
    inputs = network.examples(network.parity_sizes[0], torch.Generator().manual_seed(0))
    counted = _Counted(network.weights)
    held = open_module(network, torch.float32, CPU, Placement.HOLD)
    streamed = open_module(replace(network, weights=counted), torch.float32, CPU, Placement.STREAM)
    with torch.no_grad():
        for one, other in zip(held(**inputs), streamed(**inputs), strict=True):
            assert torch.equal(one, other)
    assert all(parameter.is_meta for parameter in streamed.parameters())
    largest = 4 * max(torch.Size(info.shape).numel() for info in network.weights.values())
    assert 0 < counted.peak <= 2 * largest < 4 * sum(torch.Size(i.shape).numel() for i in network.weights.values()) / 2


def test_a_student_that_lacks_a_tensor_is_refused(flux: Subject) -> None:
    network = flux.whole
    broken = replace(network, aliases=lambda name: () if name == "x_embedder.weight" else (name,))
    with pytest.raises(WeightsError, match=r"lacks network\.x_embedder\.weight"):
        open_module(broken, torch.float32, CPU, Placement.HOLD)


def _arguments(model: str, subject: Subject | Sources, out: Path, *more: str) -> list[str]:
    places = ["--base", str(subject.base), "--adapter", str(subject.adapter)]
    return ["--model", model, *places, "--out", str(out), "--workdir", str(out.parent / "work"), *more]


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_the_command_calibrates_every_architecture(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject: Subject = request.getfixturevalue(name)
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS))
    options = ["--prompts", str(tmp_path / "p.txt"), "--size", "64x32", "--method", "mse", "--batch", "3"]
    out = tmp_path / "c.json"
    assert run(calibrate.main, _arguments(name, subject, out, *options)) == 0
    printed = capsys.readouterr()
    assert "4 prompts at 64x32, sigmas 1, 0.762, float32 on cpu" in printed.err
    places = f"--model {name} --base {subject.base} --adapter {subject.adapter}"
    assert f"python -m export.build {places} --precision fp8 --calibration {out}" in printed.err
    calibration = read_calibration(out)
    assert (calibration.parents, calibration.student) == (subject.student.parents, subject.student.digest)
    assert (calibration.method, calibration.synthetic, calibration.percentile) == (Method.MSE, False, None)
    assert calibration.sigmas == pytest.approx((1.0, 0.761905), abs=1e-6)
    assert (calibration.prompts.number, calibration.prompts.width, calibration.prompts.height) == (4, 64, 32)
    network = subject.whole
    weights = select_layers([weight_of(layer) for layer in calibration.amax], network.fp8_layers)
    scales = calibration.input_scales(weights)
    assert all(0 < scale < 10 for scale in scales.values())
    q, k = ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_k.weight")
    assert scales[q] == scales[k]
    blocks = {block_of(layer_of(weight)) for weight in weights}
    assert len(calibration.attention) == len(blocks)
    assert all(0 < bound < 100 for bounds in calibration.attention for bound in bounds)
    assert not list((tmp_path / "work").glob("*"))


def test_what_is_seen_is_what_the_layers_get(flux: Subject, tmp_path: Path) -> None:
    """One prompt: the file's amax is that of the inputs of an independent run of diffusers' own forward."""
    (tmp_path / "p.txt").write_text(CAPTIONS[0])
    out = tmp_path / "c.json"
    assert (
        run(calibrate.main, _arguments("flux", flux, out, "--prompts", str(tmp_path / "p.txt"), "--size", "32x32")) == 0
    )
    calibration = read_calibration(out)
    from arcflow.architectures.flux import Condition, image_ids
    from arcflow.sampling import sample_student
    from export.students.rollout import noise_of

    module = flux.whole.reference().network  # type: ignore[attr-defined]
    encodings = _encode(flux, [CAPTIONS[0]])
    condition = Condition(
        encodings["pooled_projections"], encodings["encoder_hidden_states"], torch.full((1,), 3.5), image_ids(2, 2),
        torch.zeros(512, 3),
    )  # fmt: skip
    seen: dict[str, float] = {}

    def look(name: str) -> Any:
        return lambda _, args: seen.update({name: max(seen.get(name, 0.0), float(args[0].abs().max()))})

    for name in calibration.amax:
        module.get_submodule(name).register_forward_pre_hook(look(name))
    import arcflow.architectures.flux

    sample_student(arcflow.architectures.flux, module, noise_of(0, 4, 64)[None], condition, 2, 3.2, trained="bfloat16")
    assert seen == pytest.approx(dict(calibration.amax), rel=2e-4)


def test_an_interrupted_run_continues_to_the_same_file(
    flux: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS))
    options = ["--prompts", str(tmp_path / "p.txt"), "--size", "32x32", "--method", "percentile", "--batch", "1"]
    whole, out = tmp_path / "whole" / "c.json", tmp_path / "cut" / "c.json"
    assert run(calibrate.main, _arguments("flux", flux, whole, *options)) == 0
    monkeypatch.setattr(measure, "SAVE_SECONDS", 0.0)
    generated: list[int] = []
    original = measure._generate

    def generate(module: Any, run: Any, prompted: Any, rows: slice, watch: Any) -> None:
        if len(generated) == 2:
            raise KeyboardInterrupt
        generated.append(rows.start)
        original(module, run, prompted, rows, watch)

    monkeypatch.setattr(measure, "_generate", generate)
    assert run(calibrate.main, _arguments("flux", flux, out, *options)) == 130
    assert not out.exists()
    assert len(list((tmp_path / "cut" / "work").iterdir())) == 1
    generated.clear()
    generated.extend([-1, -1, -1])
    assert run(calibrate.main, _arguments("flux", flux, out, *options)) == 0
    assert generated[3:] == [2, 3]
    assert out.read_bytes() == whole.read_bytes()
    assert not list((tmp_path / "cut" / "work").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "guess"], "--method guess is unknown; allowed: amax, percentile, mse"),
        (["--percentile", "0"], "--percentile is 0.0"),
        (["--size", "big"], "--size 'big' is not understood"),
        (["--size", "33x32"], "the size 33x32 is not allowed: both sides must be multiples of 16"),
        (["--batch", "0"], "--batch is 0"),
        (["--dtype", "int8"], "--dtype int8 is unknown"),
        (["--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["--device", "toaster"], "--device toaster is unknown"),
        (["--num", "1000"], "--num is 1000"),
        (["--prompts", "no/such.txt"], "cannot read the prompts"),
        (["--base", "no/such"], "no/such"),
    ],
)
def test_what_cannot_be_calibrated_is_one_clear_line(
    options: list[str], message: str, flux: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(calibrate.main, _arguments("flux", flux, tmp_path / "c.json", *options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_too_little_memory_and_a_closed_output_are_refused_first(
    flux: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.quality.load

    monkeypatch.setattr(export.quality.load, "free_memory", lambda _: 1 << 20)
    assert run(calibrate.main, _arguments("flux", flux, tmp_path / "c.json", "--size", "32x32")) == 2
    assert "of memory are needed" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(calibrate.main, _arguments("flux", flux, tmp_path / "file" / "c.json")) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_a_calibration_is_immutable() -> None:
    calibration: Calibration = nominal(["a"], DIGEST)
    with pytest.raises(AttributeError):
        calibration.student = "x"  # type: ignore[misc]
