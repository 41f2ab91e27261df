"""Plans run once: on random inputs that fit them, or on those that are given, and what is said of what they give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines import trust
from engines.bundle import Bundle, open_bundle
from engines.errors import BundleError, StaleBundleError, TrustError
from engines.machine import Machine
from engines.schema import ShapeRange
from engines.trials import Trial, Trials, inputs_file, is_asked, outputs_file, read_trials, write_trials
from foundation.cli import run
from runtime import verify
from runtime.cuda import trials
from runtime.cuda.device import gpu
from runtime.cuda.errors import DeviceError
from runtime.cuda.once import make_inputs, run_once
from runtime.errors import BackendError
from runtime.hosts.onnx_network import OnnxRuntimeNetwork
from runtime.text import load_tokenizers
from tests.runtime import qwen_bundle
from tests.runtime.cuda import fake_tensorrt, plan_bundle
from tests.runtime.cuda.fake_tensorrt import FakeTensorRT, toolkit
from tests.runtime.cuda.onnx_engine import OnnxEngine
from tests.runtime.cuda.stand_in import StandInDevice


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandInDevice]]:
    """The devices that were opened on a machine whose second GPU is an sm89."""
    made: list[StandInDevice] = []

    def open_device(ordinal: int = 0) -> StandInDevice:
        made.append(StandInDevice(64 << 20, capability=("sm80", "sm89")[ordinal]))
        FakeTensorRT.devices[made[-1].stream] = made[-1]
        return made[-1]

    loaded = toolkit()
    monkeypatch.setattr(gpu, "open_device", open_device)
    monkeypatch.setattr(trials, "load", lambda flavour: loaded)
    monkeypatch.setattr(trials, "this_machine", lambda: Machine(("sm80", "sm89"), {}))
    monkeypatch.setattr(FakeTensorRT, "loads", 0)
    yield made
    FakeTensorRT.devices.clear()


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    return plan_bundle.build(tmp_path / "tiny-fp32-sm89", small).root


def test_every_plan_of_a_bundle_runs_at_its_usual_shapes(
    opened: list[StandInDevice], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verify.main, [str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "on tensorrt-rtx 1.7.1.116, stand-in (sm89):"
    assert [line.partition(":")[0] for line in lines[1:]] == list(open_bundle(folder).manifest.networks)
    assert "t5: finite, of input_ids [1, 12]" in lines
    assert "vae_decoder: finite, of latents [1, 4, 8, 8]" in lines
    assert opened[0].log.count("plan") == 5 and opened[0].memory_used() == 0
    assert opened[0].peak < 64 << 10, "one plan at a time"
    with pytest.raises(DeviceError, match="closed"):
        opened[0].mark()


def test_values_that_are_not_finite_name_the_networks(
    opened: list[StandInDevice], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake_tensorrt.IExecutionContext._run

    def spoiled(self, fed):  # type: ignore[no-untyped-def]
        found = whole(self, fed)
        for name in {"pooled", "means"} & set(found):
            found[name].flat[:3] = (np.nan, np.inf, -np.inf)
        return found

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "_run", spoiled)
    assert run(verify.main, [str(folder)]) == 2
    said = capsys.readouterr()
    assert said.out.count("NOT FINITE") == 2 and said.out.count(": finite") == 3, "all are run all the same"
    assert said.err.count("\n") == 1
    assert "the plan of backbone gives values that are not finite (3 of 1,024 of means); the plan of clip" in said.err
    assert "gives values that are not finite (3 of 64 of pooled): build them again" in said.err
    assert opened[0].memory_used() == 0


def test_a_plan_that_does_not_run_is_named(
    opened: list[StandInDevice], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeTensorRT, "most", 0)
    assert run(verify.main, [str(folder)]) == 2
    said = capsys.readouterr().err
    assert "the backbone network: the shape [1, 16, 16] of 'hidden_states' is outside the plan's profile" in said
    assert opened[0].memory_used() == 0


def test_what_is_no_bundle_of_our_plans_is_rejected(
    opened: list[StandInDevice], small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(verify.main, [str(small)]) == 2
    assert "holds no plans, and only plans are run so: build them with python -m export.build --model tiny" in (
        capsys.readouterr().err
    )
    foreign = plan_bundle.build(tmp_path / "a" / "tiny-fp32-sm89", small, seal=False)
    with pytest.raises(TrustError, match="no seal"):
        trials.open_bundle_trials(foreign.root)
    assert opened == [], "and that before a GPU is asked for"
    stale = plan_bundle.build(tmp_path / "b" / "tiny-fp32-sm89", small, version="1.6.0.1")
    with pytest.raises(StaleBundleError, match=r"built with tensorrt-rtx 1\.6\.0\.1"):
        trials.open_bundle_trials(stale.root)


def _asked(small: Path, folder: Path, plans: Path, *names: str, source: bool = True) -> Trials:
    """Trials of plans of the bundle ``plans`` in ``folder``."""
    bundle = open_bundle(plans)
    entries = {entry.path: entry for entry in bundle.manifest.files}
    engine = bundle.manifest.engine
    assert engine is not None
    folder.mkdir(exist_ok=True)
    asked = Trials(
        flavour="tensorrt-rtx",
        compute_capabilities=["sm89"],
        trials=[
            Trial(
                name=f"{name}-1",
                network=name,
                spec=bundle.manifest.networks[name],
                folder=str(plans),
                file=entries[f"{name}.plan"],
                shapes={port: ranges.max for port, ranges in engine.profiles[name].items()},
            )
            for name in names
        ],
        source=str(small) if source else "",
    )
    write_trials(folder, asked)
    return asked


def test_what_export_asks_is_answered_with_the_arrays(
    opened: list[StandInDevice], folder: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, source = tmp_path / "asked", open_bundle(small)
    _asked(small, place, folder, "t5", "vae_decoder")
    given = np.random.default_rng(1).standard_normal((2, 4, 6, 4)).astype(np.float32)
    np.savez(place / inputs_file("vae_decoder-1"), latents=given)
    assert is_asked(place) and not is_asked(folder)
    assert run(verify.main, [str(place)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and '"device":"stand-in"' in said and '"nonfinite":{}' in said
    for name, shape in (("t5", (4, 12)), ("vae_decoder", (2, 4, 6, 4))):
        network, spec = f"{name}-1", source.manifest.networks[name]
        with np.load(place / inputs_file(network)) as fed, np.load(place / outputs_file(network)) as gave:
            assert next(iter(fed.values())).shape == shape
            truth = OnnxRuntimeNetwork(name, source.read(spec.file), spec, 1).run(dict(fed))
            for port, values in truth.items():
                np.testing.assert_array_equal(gave[port], values)
            if name == "vae_decoder":
                np.testing.assert_array_equal(fed["latents"], given)


def test_what_another_machine_asks_or_what_is_altered_is_not_run(
    opened: list[StandInDevice], folder: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "asked"
    _asked(small, place, folder, "t5")
    path = place / "trials.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"t5-1"', b'"t5-2"'))
    with pytest.raises(TrustError, match="were not put there by this machine"):
        read_trials(place)
    path.write_bytes(content[:-5])
    with pytest.raises(BundleError, match="cannot be read"):
        read_trials(place)
    path.write_bytes(content)
    plan = folder / "t5.plan"
    data = plan.read_bytes()
    plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"t5\.plan.* altered"):
        list(trials.open_trials(place).run())
    assert FakeTensorRT.loads == 0
    monkeypatch.setenv(trust.ENVIRONMENT, str(tmp_path / "other"))
    with pytest.raises(TrustError, match="were not put there by this machine"):
        trials.open_trials(place)


def test_without_inputs_and_a_bundle_to_make_them_by_nothing_runs(
    opened: list[StandInDevice], folder: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _asked(small, tmp_path / "asked", folder, "t5", source=False)
    with pytest.raises(BackendError, match="there are no inputs for t5-1"):
        list(trials.open_trials(tmp_path / "asked").run())
    monkeypatch.setattr(trials, "this_machine", lambda: Machine((), {}))
    with pytest.raises(DeviceError, match="the plans are for sm89, and the GPU is sm80"):
        trials.open_trials(tmp_path / "asked")


@pytest.fixture(params=["flux", "qwen"])
def bundle(request: pytest.FixtureRequest, small: Path, tmp_path: Path) -> Bundle:
    if request.param == "flux":
        return open_bundle(small)
    (tmp_path / "work").mkdir()
    exported = request.getfixturevalue("exported_qwen")
    return qwen_bundle.build(tmp_path / "small-qwen-fp32-cpu", exported, tmp_path / "work")


def test_made_inputs_are_such_as_a_network_meets(bundle: Bundle) -> None:
    manifest = bundle.manifest
    vocabularies = {name: tokenizer.vocabulary for name, tokenizer in load_tokenizers(bundle).items()}
    dims = {"batch": 2, "levels": 4, "image_tokens": 6, "text_tokens": 12, "rows": 4, "columns": 6}
    for name, network in manifest.networks.items():
        shapes = {
            port.name: [dims[dim] if isinstance(dim, str) else dim for dim in port.shape] for port in network.inputs
        }
        made, again = (make_inputs(manifest, vocabularies, name, shapes) for _ in range(2))
        for port in network.inputs:
            values = made[port.name]
            assert (values.dtype, list(values.shape)) == (port.dtype, shapes[port.name])
            assert values.tobytes() == again[port.name].tobytes()
            assert np.isfinite(values).all()
        if name in vocabularies:
            assert 0 <= made["input_ids"].min() < made["input_ids"].max() < vocabularies[name]
        if "timestep" in made:
            levels = np.unique(made["timestep"])
            assert len(levels) == 2 and 0 < levels[0] < levels[1] <= 1, "of both evaluations"
        data = {path: bundle.map(path) for path in network.data}
        device = StandInDevice(64 << 20)
        engine = OnnxEngine(
            device, name, OnnxRuntimeNetwork(name, bundle.read(network.file), network, 1, data), network
        )
        for values in run_once(device, engine, network, made).values():
            assert np.isfinite(values).all()
        assert device.memory_used() == 0


def test_inputs_that_do_not_fit_are_rejected(small: Path) -> None:
    spec = open_bundle(small).manifest.networks["backbone"]
    shapes = {port.name: ShapeRange([1], [1], [1]).opt for port in spec.inputs}
    with pytest.raises(BackendError, match=r"'hidden_states' has the shape \[1\]; the network takes"):
        make_inputs(open_bundle(small).manifest, {}, "backbone", shapes)
