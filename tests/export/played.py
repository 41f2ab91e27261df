"""A build on a machine with a GPU, played: what it calls plans is what the played TensorRT runs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.machine import Machine
from export.assembling import device_parity, parity
from export.tensorrt import flavours, plans
from export.tensorrt.build import build_plan
from export.tensorrt.report import Gemms, Layers, PlanReport
from tests.export.tensorrt.graphs import rtx
from tests.runtime.cuda.fake_tensorrt import MAGIC
from tests.runtime.cuda.trials.played import GPU, play


def play_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, really: Collection[str] = ()) -> list[str]:
    """Make this process, and those that it starts, find a GPU of sm89. Returns the networks of the plans, as they come.

    really: networks that TensorRT also builds plans of, so that it is seen whether it can.
    """
    built: list[str] = []
    toolkit = rtx()

    def build(path: Path, out: Path, **options: Any) -> PlanReport:
        name = str(options["name"])
        built.append(name)
        if name in really:
            with monkeypatch.context() as real:
                real.delenv("PYTHONPATH")  # The builder's own process finds the machine as it is.
                build_plan(path, out, **options)
        content = MAGIC + _runnable(path)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(content)
        return PlanReport(
            network=name,
            path=out,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            flavour=toolkit.flavour,
            version=toolkit.version,
            capabilities=options["target"].capabilities,
            opt_level=0,
            seconds=0.0,
            warnings=0,
            layers=Layers("played", {}, Gemms(0, 0, 0, 0), 0, 0, 0),
            memory=None,
            profile=options["profile"],
        )

    for name, value in play(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        flavours, "this_machine", lambda: Machine(("sm89",), {toolkit.flavour: toolkit.version}, (GPU,))
    )
    for module in (plans, device_parity):
        monkeypatch.setattr(module, "build_plan", build)
    return built


def _runnable(path: Path) -> bytes:
    """The network as ONNX Runtime's CPU runs it, weights inside, bfloat16 emulated."""
    proto = onnx.load(path)
    data = proto.SerializeToString()
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    return parity._emulated(proto).SerializeToString() if onnx.TensorProto.BFLOAT16 in kinds else data
