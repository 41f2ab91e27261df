"""The part ``plans`` over a TensorRT of the same names and the stand-in device: another GPU's plans, taken or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpu.device
from engines import tensorrt
from gpu.catalogue import Options
from gpu.parts import plans
from gpu.records import Printer
from runtime.cuda import opening
from runtime.cuda.device import gpu as device
from runtime.errors import BackendError
from tests.runtime import small_bundle
from tests.runtime.cuda import plan_bundle
from tests.runtime.cuda.fake_tensorrt import FakeTensorRT, toolkit
from tests.runtime.cuda.stand_in import StandInDevice


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Plans for sm89, on a machine with an sm90."""

    def open_device(ordinal: int = 0) -> StandInDevice:
        made = StandInDevice(128 << 20, capability="sm90")
        made.stream = 0x100 + len(FakeTensorRT.devices)
        FakeTensorRT.devices[made.stream] = made
        return made

    loaded = toolkit()
    monkeypatch.setattr(device, "open_device", open_device)
    monkeypatch.setattr(opening, "load", lambda flavour: loaded)
    monkeypatch.setattr(tensorrt, "load", lambda flavour: loaded)
    for module in (gpu.device, plans):
        monkeypatch.setattr(module, "need_gpu", lambda: None)
    onnx = small_bundle.build(tmp_path / "tiny-fp32-cpu").root
    monkeypatch.setattr(plans, "REFERENCE", onnx)
    yield plan_bundle.build(tmp_path / "tiny-fp32-sm89", onnx).root
    FakeTensorRT.devices.clear()


def _records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_plans_that_load_are_run_and_compared(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plans.run(Printer("plans"), Options(smoke=True, bundle=bundle, out=tmp_path))
    version, current, answer, compared, timed, frugal = _records(capsys)
    assert version["version"] == "1.7.1.116" and current["kind"] == "skipped"
    assert answer["show"] == "yes, 5 of 5 load" and answer["capability"] == "sm90"
    assert compared["held"] and frugal["held"] and compared["error"] < 1e-5
    assert timed["memory"]["peak"] > 0 and timed["total"]["samples"] == 5


def test_plans_that_do_not_load_are_an_answer_too(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise BackendError("built for another GPU")

    from runtime.cuda.plans import loading

    monkeypatch.setattr(loading, "load_plan", refuse)
    plans.run(Printer("plans"), Options(smoke=True, bundle=bundle, out=tmp_path))
    answer = _records(capsys)[-1]
    assert answer["show"] == "NO, 0 of 5 load: built for another GPU" and answer["kind"] == "measured"
    assert set(answer["errors"]) == {"backbone", "clip", "conditioner", "t5", "vae_decoder"}
